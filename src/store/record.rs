//! Changes as bytes. A frame's payload is records one behind the other.
//!
//! Reading is what makes the state, while running as at start: what was written is read again.

use std::sync::Arc;

use bytes::{BufMut, Bytes};
use smallvec::SmallVec;

use super::frame::Counts;
use super::image::Entry;
use super::reader::Reader;
use super::time::{Moment, Timeline};
use crate::broker::{Change, Message, MessageId, Publisher, QueuedFor, StoredWill};
use crate::codec::SubscriptionOptions;
use crate::types::{ClientId, Identity, PacketId, QoS, Realm, RetainHandling, Topic};

/// A record as it was read.
#[derive(Debug)]
pub(super) enum Record<'a> {
    Session {
        client: &'a str,
        identity: Option<Identity>,
        realm: Realm,
        expiry_interval_secs: u32,
        will: Option<Arc<StoredWill>>,
        connected: bool,
        /// When it was so; `None`: the frame's time.
        since: Option<Moment>,
    },
    SessionEnded(&'a str),
    Subscribed {
        client: &'a str,
        filter: &'a str,
        options: SubscriptionOptions,
        identifier: Option<u32>,
    },
    Unsubscribed(&'a str, &'a str),
    Message {
        body: Body<'a>,
        received: Option<(&'a str, PacketId)>,
        queued: SmallVec<[To<'a>; 1]>,
        retained: bool,
    },
    RetainedCleared(&'a str),
    Sent(&'a str, MessageId, PacketId),
    Received(&'a str, PacketId),
    Done(&'a str, MessageId, Option<PacketId>),
    Moved {
        message: MessageId,
        body: Option<Body<'a>>,
        from: &'a str,
        to: To<'a>,
    },
    GivenUp {
        client: &'a str,
        share: &'a str,
        messages: Vec<MessageId>,
    },
    Released(&'a str, PacketId),
    /// Of a checkpoint: one message in a queue, its body elsewhere.
    Queued {
        id: MessageId,
        segment: u32,
        offset: u32,
        size: u32,
        expires: Moment,
        published: QoS,
        to: To<'a>,
    },
    /// Of a checkpoint: PUBREC came for these.
    ReleasedOut(&'a str, PacketId, MessageId),
    /// Of a checkpoint: an inbound QoS 2 identifier.
    ReceivedIn(&'a str, PacketId),
    /// Of a checkpoint: a retained message, its body elsewhere.
    Retained {
        topic: &'a str,
        segment: u32,
        offset: u32,
        len: u32,
    },
    /// Of a checkpoint: message identifiers below this are used.
    NextMessage(u64),
    /// A body that was copied from an old segment; what refers to it is in the next checkpoint.
    Copied,
    /// A checkpoint has this behind everything else.
    CheckpointEnd,
    QueuedRetained {
        topic: &'a str,
        id: MessageId,
        size: u32,
        expires: Moment,
        published: QoS,
        to: To<'a>,
    },
}

/// One session that a message is queued for: a [`QueuedFor`] as it was read.
#[derive(Debug)]
pub(super) struct To<'a> {
    pub(super) client: &'a str,
    pub(super) qos: QoS,
    pub(super) packet_id: Option<PacketId>,
    pub(super) retain: bool,
    pub(super) subscription_identifiers: Vec<u32>,
    pub(super) shared: Option<&'a str>,
    pub(super) at_hand: bool,
}

/// What is known of a body without reading it whole.
#[derive(Clone, Debug)]
pub(super) struct Body<'a> {
    pub(super) id: MessageId,
    /// Where it begins in the payload.
    pub(super) at: usize,
    pub(super) size: u32,
    pub(super) published: QoS,
    /// 0: never.
    pub(super) expires: Moment,
    pub(super) topic: &'a [u8],
}

/// A record that makes no sense: its frame was written by something else.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a record that is none")]
pub(super) struct BadRecord;

pub(super) type Result<T> = std::result::Result<T, BadRecord>;

const SESSION: u8 = 1;
const SESSION_ENDED: u8 = 2;
const SUBSCRIBED: u8 = 3;
const UNSUBSCRIBED: u8 = 4;
const MESSAGE: u8 = 5;
const RETAINED_CLEARED: u8 = 6;
const SENT: u8 = 7;
const RECEIVED: u8 = 8;
const DONE: u8 = 9;
const MOVED: u8 = 10;
const GIVEN_UP: u8 = 11;
const RELEASED: u8 = 12;
const QUEUED: u8 = 13;
const RELEASED_OUT: u8 = 14;
const RECEIVED_IN: u8 = 15;
const RETAINED: u8 = 16;
const NEXT_MESSAGE: u8 = 17;
const COPIED: u8 = 18;
const CHECKPOINT_END: u8 = 19;
const QUEUED_RETAINED: u8 = 20;

/// Appends `change` to `out` and counts it.
pub(super) fn encode(change: &Change, timeline: &Timeline, out: &mut Vec<u8>, counts: &mut Counts) {
    let count = match change {
        Change::Message { .. } => &mut counts.messages,
        Change::Done { .. } => &mut counts.done,
        Change::Session { .. }
        | Change::SessionEnded { .. }
        | Change::Subscribed { .. }
        | Change::Unsubscribed { .. } => &mut counts.sessions,
        _ => &mut counts.others,
    };
    *count = count.saturating_add(1);
    match change {
        Change::Session { client, identity, realm, expiry_interval_secs, will, connected, is_new: _ } => {
            let who = (client, identity.as_ref(), *realm);
            session(out, who, *expiry_interval_secs, will.as_deref(), *connected, None);
        }
        Change::SessionEnded { client } => {
            out.put_u8(SESSION_ENDED);
            text(out, client.as_str());
        }
        Change::Subscribed { client, filter, options, identifier } => {
            subscribed(out, client, filter, options, *identifier);
        }
        Change::Unsubscribed { client, filter } => {
            out.put_u8(UNSUBSCRIBED);
            text(out, client.as_str());
            text(out, filter);
        }
        Change::Message { message, received, queued, retained } => {
            out.put_u8(MESSAGE);
            body(out, message, timeline);
            out.put_u8(u8::from(received.is_some()));
            if let Some((client, packet_id)) = received {
                text(out, client.as_str());
                out.put_u16_le(packet_id.value());
            }
            out.put_u8(u8::from(*retained));
            varint(out, queued.len() as u64);
            queued.iter().for_each(|to| queued_for(out, to));
        }
        Change::QueuedRetained { message, to } => {
            out.put_u8(QUEUED_RETAINED);
            text(out, message.topic().as_str());
            varint(out, message.id.0);
            varint(out, message.size() as u64);
            varint(out, expires_of(message, timeline));
            out.put_u8(message.qos.bits());
            queued_for(out, to);
        }
        Change::RetainedCleared { topic } => {
            out.put_u8(RETAINED_CLEARED);
            text(out, topic);
        }
        Change::Sent { client, message, packet_id } => {
            out.put_u8(SENT);
            text(out, client.as_str());
            varint(out, message.0);
            out.put_u16_le(packet_id.value());
        }
        Change::Received { client, packet_id } => numbered(out, RECEIVED, client, *packet_id),
        Change::Done { client, message, packet_id } => {
            out.put_u8(DONE);
            text(out, client.as_str());
            varint(out, message.0);
            out.put_u16_le(packet_id.map_or(0, PacketId::value));
        }
        Change::Moved { message, body: moved, from, packet_id: _, to } => {
            out.put_u8(MOVED);
            varint(out, message.0);
            text(out, from.as_str());
            queued_for(out, to);
            out.put_u8(u8::from(moved.is_some()));
            if let Some(message) = moved {
                body(out, message, timeline);
            }
        }
        Change::GivenUp { client, share, messages } => {
            out.put_u8(GIVEN_UP);
            text(out, client.as_str());
            text(out, share);
            varint(out, messages.len() as u64);
            messages.iter().for_each(|message| varint(out, message.0));
        }
        Change::Released { client, packet_id } => numbered(out, RELEASED, client, *packet_id),
    }
}

fn numbered(out: &mut Vec<u8>, kind: u8, client: &ClientId, packet_id: PacketId) {
    out.put_u8(kind);
    text(out, client.as_str());
    out.put_u16_le(packet_id.value());
}

pub(super) fn session(
    out: &mut Vec<u8>,
    (client, identity, realm): (&ClientId, Option<&Identity>, Realm),
    expiry_interval_secs: u32,
    will: Option<&StoredWill>,
    connected: bool,
    since: Option<Moment>,
) {
    out.put_u8(SESSION);
    text(out, client.as_str());
    text(out, identity.map_or("", |name| name.as_str()));
    out.put_u32_le(expiry_interval_secs);
    let has_realm = realm != Realm::SITE;
    out.put_u8(u8::from(connected) | (u8::from(will.is_some()) << 1) | (u8::from(has_realm) << 2));
    if has_realm {
        out.put_u32_le(realm.value());
    }
    varint(out, since.unwrap_or(0));
    if let Some(will) = will {
        text(out, &will.topic);
        blob(out, &will.payload);
        blob(out, &will.forwarded);
        out.put_u8(will.qos.bits() | (u8::from(will.retain) << 2));
        out.put_u32_le(will.delay_interval_secs);
        varint(out, will.message_expiry_interval_secs.map_or(0, |secs| u64::from(secs) + 1));
    }
}

pub(super) fn subscribed(
    out: &mut Vec<u8>,
    client: &ClientId,
    filter: &str,
    options: &SubscriptionOptions,
    identifier: Option<u32>,
) {
    out.put_u8(SUBSCRIBED);
    text(out, client.as_str());
    text(out, filter);
    // As the options byte of SUBSCRIBE has them (MQTT 5 section 3.8.3.1).
    out.put_u8(
        options.qos.bits()
            | (u8::from(options.no_local) << 2)
            | (u8::from(options.retain_as_published) << 3)
            | ((options.retain_handling as u8) << 4),
    );
    varint(out, u64::from(identifier.unwrap_or(0)));
}

/// A body has a length and a checksum of its own: it is read alone, long after its frame.
fn body(out: &mut Vec<u8>, message: &Message, timeline: &Timeline) {
    let start = out.len();
    out.put_u64_le(0);
    varint(out, message.id.0);
    out.put_u8(message.qos.bits());
    varint(out, expires_of(message, timeline));
    text(out, &message.publisher.as_deref().map(publisher_text).unwrap_or_default());
    text(out, message.topic().as_str());
    blob(out, &message.forwarded);
    blob(out, &message.payload);
    seal_body(&mut out[start..]);
}

fn seal_body(bytes: &mut [u8]) {
    let len = (bytes.len() - BODY_HEADER) as u32;
    let crc = crc32fast::hash(&bytes[BODY_HEADER..]);
    bytes[..4].copy_from_slice(&len.to_le_bytes());
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// A body's length and checksum.
pub(super) const BODY_HEADER: usize = 8;

/// How long the body is whose header this is, header included.
pub(super) fn body_len(bytes: &[u8]) -> Option<usize> {
    let len: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
    Some(BODY_HEADER + u32::from_le_bytes(len) as usize)
}

/// The message in a body that was read alone.
pub(super) fn message(bytes: Bytes, timeline: &Timeline) -> Result<Message> {
    let crc = bytes.get(4..8).and_then(|crc| crc.try_into().ok()).map(u32::from_le_bytes).ok_or(BadRecord)?;
    let inner = bytes.slice(BODY_HEADER..);
    if crc32fast::hash(&inner) != crc {
        return Err(BadRecord);
    }
    let mut reader = Reader { bytes: &inner };
    let id = MessageId(reader.varint()?);
    let qos = reader.qos()?;
    let expires = reader.varint()?;
    let publisher = publisher(reader.text()?);
    let topic = reader.text()?;
    let forwarded = reader.blob()?;
    let payload = reader.blob()?;
    let topic = Topic::parse(topic).map_err(|_| BadRecord)?;
    let expires = if expires == 0 { None } else { timeline.instant(expires) };
    Ok(Message::new(id, topic, inner.slice_ref(payload), forwarded.into(), qos, expires, publisher))
}

/// Client id, identity and realm, with U+0000 between: no client id or identity has it.
fn publisher_text(publisher: &Publisher) -> String {
    let client = publisher.client.as_str();
    match &publisher.came_as {
        None => client.to_owned(),
        Some((identity, realm)) => {
            format!("{client}\0{}\0{}", identity.as_ref().map_or("", |name| name.as_str()), realm.value())
        }
    }
}

/// `None` for nobody; the client id alone is what earlier versions wrote.
fn publisher(text: &str) -> Option<Arc<Publisher>> {
    let (client, came_as) = text.split_once('\0').map_or((text, None), |(client, rest)| (client, Some(rest)));
    let came_as = came_as.map(|rest| {
        let (name, realm) = rest.split_once('\0').unwrap_or((rest, ""));
        let identity = (!name.is_empty()).then(|| Identity::foreign(name));
        (identity, Realm::from_value(realm.parse().unwrap_or_default()))
    });
    Some(Arc::new(Publisher { client: ClientId::new(client)?, came_as }))
}

fn queued_for(out: &mut Vec<u8>, to: &QueuedFor) {
    text(out, to.client.as_str());
    let flags = to.qos.bits()
        | (u8::from(to.retain) << 2)
        | (u8::from(to.at_hand) << 3)
        | (u8::from(to.shared.is_some()) << 4)
        | (u8::from(!to.subscription_identifiers.is_empty()) << 5)
        | (u8::from(to.packet_id.is_some()) << 6);
    out.put_u8(flags);
    if let Some(packet_id) = to.packet_id {
        out.put_u16_le(packet_id.value());
    }
    if let Some(share) = &to.shared {
        text(out, share);
    }
    if !to.subscription_identifiers.is_empty() {
        varint(out, to.subscription_identifiers.len() as u64);
        to.subscription_identifiers.iter().for_each(|identifier| varint(out, u64::from(*identifier)));
    }
}

/// One message in a queue, for a checkpoint.
pub(super) fn queued(out: &mut Vec<u8>, entry: &Entry, to: &QueuedFor) {
    out.put_u8(QUEUED);
    varint(out, entry.id);
    out.put_u32_le(entry.place.segment);
    out.put_u32_le(entry.place.offset);
    varint(out, u64::from(entry.size));
    varint(out, entry.expires());
    out.put_u8(entry.published().bits());
    queued_for(out, to);
}

pub(super) fn released_out(out: &mut Vec<u8>, client: &ClientId, packet_id: PacketId, message: MessageId) {
    numbered(out, RELEASED_OUT, client, packet_id);
    varint(out, message.0);
}

pub(super) fn received_in(out: &mut Vec<u8>, client: &ClientId, packet_id: PacketId) {
    numbered(out, RECEIVED_IN, client, packet_id);
}

pub(super) fn retained(out: &mut Vec<u8>, topic: &str, segment: u32, offset: u32, len: u32) {
    out.put_u8(RETAINED);
    text(out, topic);
    out.put_u32_le(segment);
    out.put_u32_le(offset);
    out.put_u32_le(len);
}

pub(super) fn checkpoint_end(out: &mut Vec<u8>) {
    out.put_u8(CHECKPOINT_END);
}

pub(super) fn next_message(out: &mut Vec<u8>, next: u64) {
    out.put_u8(NEXT_MESSAGE);
    varint(out, next);
}

fn expires_of(message: &Message, timeline: &Timeline) -> Moment {
    message.expires.map_or(0, |at| timeline.moment(at).max(1))
}

/// A body copied whole; says where in `out` it begins.
pub(super) fn copied(out: &mut Vec<u8>, body: &[u8]) -> usize {
    out.put_u8(COPIED);
    let at = out.len();
    out.put_slice(body);
    at
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

fn blob(out: &mut Vec<u8>, bytes: &[u8]) {
    varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

fn text(out: &mut Vec<u8>, text: &str) {
    blob(out, text.as_bytes());
}

/// Reads the records of a payload.
#[derive(Debug)]
pub(super) struct Records<'a> {
    len: usize,
    reader: Reader<'a>,
}

impl<'a> Records<'a> {
    pub(super) fn new(payload: &'a [u8]) -> Records<'a> {
        Records { len: payload.len(), reader: Reader { bytes: payload } }
    }

    fn record(&mut self) -> Result<Record<'a>> {
        let len = self.len;
        let reader = &mut self.reader;
        Ok(match reader.u8()? {
            SESSION => {
                let client = reader.client()?;
                let identity = reader.text()?;
                let expiry_interval_secs = reader.u32()?;
                let flags = reader.u8()?;
                let realm = Realm::from_value(if flags & 4 == 0 { 0 } else { reader.u32()? });
                let since = reader.varint()?;
                let will = if flags & 2 == 0 { None } else { Some(Arc::new(reader.will()?)) };
                Record::Session {
                    client,
                    identity: if identity.is_empty() { None } else { Some(Identity::foreign(identity)) },
                    realm,
                    expiry_interval_secs,
                    will,
                    connected: flags & 1 != 0,
                    since: (since > 0).then_some(since),
                }
            }
            SESSION_ENDED => Record::SessionEnded(reader.client()?),
            SUBSCRIBED => {
                let client = reader.client()?;
                let filter = reader.text()?;
                let options = reader.u8()?;
                let identifier = reader.varint()? as u32;
                Record::Subscribed {
                    client,
                    filter,
                    options: SubscriptionOptions {
                        qos: QoS::from_bits(options & 3).ok_or(BadRecord)?,
                        no_local: options & 4 != 0,
                        retain_as_published: options & 8 != 0,
                        retain_handling: RetainHandling::from_bits(options >> 4).ok_or(BadRecord)?,
                    },
                    identifier: (identifier > 0).then_some(identifier),
                }
            }
            UNSUBSCRIBED => Record::Unsubscribed(reader.client()?, reader.text()?),
            MESSAGE => {
                let body = reader.body(len)?;
                let received = match reader.u8()? {
                    0 => None,
                    _ => Some((reader.client()?, reader.packet_id()?)),
                };
                let retained = reader.u8()? != 0;
                let count = reader.varint()?;
                let queued = (0..count).map(|_| reader.queued_for()).collect::<Result<_>>()?;
                Record::Message { body, received, queued, retained }
            }
            RETAINED_CLEARED => Record::RetainedCleared(reader.text()?),
            SENT => Record::Sent(reader.client()?, MessageId(reader.varint()?), reader.packet_id()?),
            RECEIVED => Record::Received(reader.client()?, reader.packet_id()?),
            DONE => Record::Done(reader.client()?, MessageId(reader.varint()?), PacketId::new(reader.u16()?)),
            MOVED => {
                let message = MessageId(reader.varint()?);
                let from = reader.client()?;
                let to = reader.queued_for()?;
                let body = if reader.u8()? == 0 { None } else { Some(reader.body(len)?) };
                Record::Moved { message, body, from, to }
            }
            GIVEN_UP => {
                let client = reader.client()?;
                let share = reader.text()?;
                let count = reader.varint()?;
                let messages = (0..count).map(|_| reader.varint().map(MessageId)).collect::<Result<Vec<_>>>()?;
                Record::GivenUp { client, share, messages }
            }
            RELEASED => Record::Released(reader.client()?, reader.packet_id()?),
            QUEUED => Record::Queued {
                id: MessageId(reader.varint()?),
                segment: reader.u32()?,
                offset: reader.u32()?,
                size: reader.varint()? as u32,
                expires: reader.varint()?,
                published: reader.qos()?,
                to: reader.queued_for()?,
            },
            RELEASED_OUT => Record::ReleasedOut(reader.client()?, reader.packet_id()?, MessageId(reader.varint()?)),
            RECEIVED_IN => Record::ReceivedIn(reader.client()?, reader.packet_id()?),
            RETAINED => Record::Retained {
                topic: reader.text()?,
                segment: reader.u32()?,
                offset: reader.u32()?,
                len: reader.u32()?,
            },
            NEXT_MESSAGE => Record::NextMessage(reader.varint()?),
            CHECKPOINT_END => Record::CheckpointEnd,
            QUEUED_RETAINED => Record::QueuedRetained {
                topic: reader.text()?,
                id: MessageId(reader.varint()?),
                size: reader.varint()? as u32,
                expires: reader.varint()?,
                published: reader.qos()?,
                to: reader.queued_for()?,
            },
            COPIED => {
                reader.body(len)?;
                Record::Copied
            }
            _ => return Err(BadRecord),
        })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>>;

    fn next(&mut self) -> Option<Result<Record<'a>>> {
        if self.reader.bytes.is_empty() {
            return None;
        }
        let record = self.record();
        if record.is_err() {
            self.reader.bytes = &[];
        }
        Some(record)
    }
}
