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
    key: Option<(MessageId, Version, QoS, bool, bool, Identifiers)>,
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

impl Frames {
    pub(super) fn reset(&mut self) {
        self.key = None;
    }

    pub(super) fn prepare(
        &mut self,
        view: &View<'_>,
        version: Version,
        qos: QoS,
        retain: bool,
        dup: bool,
        identifiers: &Identifiers,
    ) -> &mut PublishFrame {
        let same = self.key.as_ref().is_some_and(|(id, v, q, r, d, ids)| {
            (*id, *v, *q, *r, *d) == (view.id, version, qos, retain, dup) && ids == identifiers
        });
        if !same {
            self.frame.encode(&PublishHead {
                version,
                qos,
                retain,
                dup,
                topic: view.topic,
                topic_alias: None,
                message_expiry_interval: view.remaining_secs,
                subscription_identifiers: identifiers,
                forwarded: view.forwarded,
                payload_len: view.payload.as_slice().len(),
            });
            self.key = Some((view.id, version, qos, retain, dup, identifiers.clone()));
        }
        &mut self.frame
    }
}
