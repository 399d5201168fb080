//! What a client writes and a server only reads: properties (section 2.2.2), and a SUBSCRIBE's filters.

use super::encode::{binary_property, encode, text, text_property, u32_property, user_property};
use super::packet::{Packet, Subscribe, SubscribeFilters, SubscriptionOptions, Version};
use super::properties::{PublishProperties, UserProperties, WillProperties, id};
use super::read::Reader;
use super::{DecodeError, encode::varint};
use crate::types::PacketId;

/// Properties in the making: of a PUBLISH, a will, a CONNECT or a SUBSCRIBE.
#[derive(Clone, Debug, Default)]
pub struct PropertyBlock {
    bytes: Vec<u8>,
}

impl PropertyBlock {
    pub fn payload_is_utf8(&mut self) {
        self.bytes.extend_from_slice(&[id::PAYLOAD_FORMAT_INDICATOR, 1]);
    }

    pub fn message_expiry_interval(&mut self, secs: u32) {
        u32_property(&mut self.bytes, id::MESSAGE_EXPIRY_INTERVAL, secs);
    }

    pub fn will_delay_interval(&mut self, secs: u32) {
        u32_property(&mut self.bytes, id::WILL_DELAY_INTERVAL, secs);
    }

    pub fn content_type(&mut self, value: &str) {
        text_property(&mut self.bytes, id::CONTENT_TYPE, Some(value));
    }

    pub fn response_topic(&mut self, value: &str) {
        text_property(&mut self.bytes, id::RESPONSE_TOPIC, Some(value));
    }

    pub fn correlation_data(&mut self, value: &[u8]) {
        binary_property(&mut self.bytes, id::CORRELATION_DATA, Some(value));
    }

    pub fn user_property(&mut self, name: &str, value: &str) {
        user_property(&mut self.bytes, name, value);
    }

    /// Bytes, with as many for its length as that may take.
    pub fn size(&self) -> usize {
        self.bytes.len() + 4
    }

    /// As a PUBLISH has them; one that is given twice or is no topic is refused.
    pub fn publish(&self) -> Result<PublishPropertiesOf, DecodeError> {
        let whole = self.whole();
        PublishProperties::read(&mut Reader::new(&whole))?;
        Ok(PublishPropertiesOf(whole))
    }

    /// As a will has them.
    pub fn will(&self) -> Result<WillPropertiesOf, DecodeError> {
        let whole = self.whole();
        WillProperties::read(&mut Reader::new(&whole))?;
        Ok(WillPropertiesOf(whole))
    }

    pub fn user_properties(&self) -> UserProperties<'_> {
        UserProperties { block: &self.bytes }
    }

    /// Behind its length.
    fn whole(&self) -> Vec<u8> {
        let mut whole = Vec::with_capacity(self.bytes.len() + 4);
        varint(&mut whole, self.bytes.len());
        whole.extend_from_slice(&self.bytes);
        whole
    }
}

/// Checked properties of a PUBLISH.
#[derive(Clone, Debug)]
pub struct PublishPropertiesOf(Vec<u8>);

impl PublishPropertiesOf {
    pub fn get(&self) -> PublishProperties<'_> {
        PublishProperties::read(&mut Reader::new(&self.0)).expect("checked when it was made")
    }
}

/// Checked properties of a will.
#[derive(Clone, Debug)]
pub struct WillPropertiesOf(Vec<u8>);

impl WillPropertiesOf {
    pub fn get(&self) -> WillProperties<'_> {
        WillProperties::read(&mut Reader::new(&self.0)).expect("checked when it was made")
    }
}

/// Appends a SUBSCRIBE (section 3.8); before MQTT 5 a filter has its QoS alone.
pub fn encode_subscription(
    out: &mut Vec<u8>,
    packet_id: PacketId,
    filters: &[(&str, SubscriptionOptions)],
    properties: UserProperties<'_>,
    version: Version,
) {
    let mut bytes = Vec::new();
    for (filter, options) in filters {
        text(&mut bytes, filter);
        bytes.push(options.bits(version));
    }
    let subscribe = Subscribe {
        packet_id,
        subscription_identifier: None,
        user_properties: properties,
        filters: SubscribeFilters { version, bytes: &bytes },
    };
    encode(out, &Packet::Subscribe(subscribe), version);
}
