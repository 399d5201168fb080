//! A PUBLISH encoded once for all receivers in a row whose bytes agree.

use std::time::Instant;

use super::message::{Identifiers, Message, MessageId, remaining_secs};
use super::outbox::Payload;
use crate::codec::{PublishFrame, PublishHead, Version};
use crate::types::QoS;

/// The last PUBLISH encoded: receivers in a row whose bytes agree share it.
#[derive(Default, Debug)]
pub(super) struct Frames {
    frame: PublishFrame,
    key: Option<(MessageId, Shape)>,
}

/// What a PUBLISH is encoded from, whether the message is kept or passes through.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    /// Zero for one that passes through.
    pub(super) id: MessageId,
    pub(super) topic: &'a str,
    pub(super) forwarded: &'a [u8],
    pub(super) payload: Payload<'a>,
    pub(super) remaining_secs: Option<u32>,
}

impl<'a> View<'a> {
    /// Its topic as a client sees it that does not see so many bytes of it.
    pub(super) fn topic_from(&self, cut: u16) -> &'a str {
        self.topic.get(usize::from(cut)..).unwrap_or_default()
    }

    pub(super) fn of(message: &'a Message, now: Instant) -> View<'a> {
        View {
            id: message.id,
            topic: &message.topic,
            forwarded: &message.forwarded,
            payload: Payload::Shared(&message.payload),
            remaining_secs: message.expires.map(|at| remaining_secs(at, now)),
        }
    }
}

/// In what the bytes of one message differ from receiver to receiver, but for the packet identifier.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Shape {
    pub(super) version: Version,
    pub(super) qos: QoS,
    pub(super) retain: bool,
    pub(super) dup: bool,
    pub(super) alias: Alias,
    /// Bytes of the topic that its client does not see.
    pub(super) cut: u16,
    pub(super) identifiers: Identifiers,
}

/// Instead of how much of a topic its client does not see: it sees no message of it.
pub(super) const HIDDEN: u16 = u16::MAX;

/// How a Topic Alias is used (MQTT 5 section 3.3.2.3.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Alias {
    None,
    /// Sent beside the topic, which it stands for from now on.
    Set(u16),
    /// Sent in the topic's place.
    Known(u16),
}

impl Frames {
    pub(super) fn reset(&mut self) {
        self.key = None;
    }

    pub(super) fn prepare(&mut self, view: &View<'_>, shape: &Shape) -> &mut PublishFrame {
        let same = self.key.as_ref().is_some_and(|(id, last)| *id == view.id && last == shape);
        if !same {
            let (topic, topic_alias) = match shape.alias {
                Alias::None => (view.topic_from(shape.cut), None),
                Alias::Set(number) => (view.topic_from(shape.cut), Some(number)),
                Alias::Known(number) => ("", Some(number)),
            };
            self.frame.encode(&PublishHead {
                version: shape.version,
                qos: shape.qos,
                retain: shape.retain,
                dup: shape.dup,
                topic,
                topic_alias,
                message_expiry_interval: view.remaining_secs,
                subscription_identifiers: &shape.identifiers,
                forwarded: view.forwarded,
                payload_len: view.payload.as_slice().len(),
            });
            // Mostly there are no identifiers, and copying none is quicker.
            let identifiers = if shape.identifiers.is_empty() { Identifiers::new() } else { shape.identifiers.clone() };
            self.key = Some((view.id, Shape { identifiers, ..*shape }));
        }
        &mut self.frame
    }
}
