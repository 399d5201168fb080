//! Records as they are read, piece by piece: nothing of them is trusted.

use bytes::{Buf, Bytes};

use super::record::{BODY_HEADER, BadRecord, Body, Result, To, body_len};
use crate::broker::{MessageId, StoredWill};
use crate::types::{PacketId, QoS};

#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn u8(&mut self) -> Result<u8> {
        self.bytes.try_get_u8().map_err(|_| BadRecord)
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        self.bytes.try_get_u16_le().map_err(|_| BadRecord)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.bytes.try_get_u32_le().map_err(|_| BadRecord)
    }

    pub(super) fn varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(BadRecord)
    }

    pub(super) fn blob(&mut self) -> Result<&'a [u8]> {
        let len = self.varint()? as usize;
        let (blob, rest) = self.bytes.split_at_checked(len).ok_or(BadRecord)?;
        self.bytes = rest;
        Ok(blob)
    }

    pub(super) fn text(&mut self) -> Result<&'a str> {
        str::from_utf8(self.blob()?).map_err(|_| BadRecord)
    }

    pub(super) fn client(&mut self) -> Result<&'a str> {
        self.text().ok().filter(|text| !text.is_empty()).ok_or(BadRecord)
    }

    pub(super) fn packet_id(&mut self) -> Result<PacketId> {
        PacketId::new(self.u16()?).ok_or(BadRecord)
    }

    pub(super) fn qos(&mut self) -> Result<QoS> {
        QoS::from_bits(self.u8()?).ok_or(BadRecord)
    }

    pub(super) fn will(&mut self) -> Result<StoredWill> {
        let topic = self.text()?.into();
        let payload = Bytes::copy_from_slice(self.blob()?);
        let forwarded = self.blob()?.into();
        let flags = self.u8()?;
        Ok(StoredWill {
            topic,
            payload,
            forwarded,
            qos: QoS::from_bits(flags & 3).ok_or(BadRecord)?,
            retain: flags & 4 != 0,
            delay_interval_secs: self.u32()?,
            message_expiry_interval_secs: self.varint()?.checked_sub(1).map(|secs| secs as u32),
        })
    }

    pub(super) fn queued_for(&mut self) -> Result<To<'a>> {
        let client = self.client()?;
        let flags = self.u8()?;
        let packet_id = if flags & 64 == 0 { None } else { Some(self.packet_id()?) };
        let shared = if flags & 16 == 0 { None } else { Some(self.text()?) };
        let mut subscription_identifiers = Vec::new();
        if flags & 32 != 0 {
            let count = self.varint()?;
            for _ in 0..count {
                subscription_identifiers.push(self.varint()? as u32);
            }
        }
        Ok(To {
            client,
            qos: QoS::from_bits(flags & 3).ok_or(BadRecord)?,
            packet_id,
            retain: flags & 4 != 0,
            subscription_identifiers,
            shared,
            at_hand: flags & 8 != 0,
        })
    }

    /// A body in a payload of `len` bytes; its head alone is looked at.
    pub(super) fn body(&mut self, len: usize) -> Result<Body<'a>> {
        let at = len - self.bytes.len();
        let whole = body_len(self.bytes).ok_or(BadRecord)?;
        let (body, rest) = self.bytes.split_at_checked(whole).ok_or(BadRecord)?;
        self.bytes = rest;
        let mut head = Reader { bytes: &body[BODY_HEADER..] };
        let id = MessageId(head.varint()?);
        let published = head.qos()?;
        let expires = head.varint()?;
        head.blob()?;
        let topic = head.blob()?;
        let forwarded = head.blob()?.len();
        let payload = head.blob()?.len();
        Ok(Body { id, at, size: (topic.len() + forwarded + payload) as u32, published, expires, topic })
    }
}
