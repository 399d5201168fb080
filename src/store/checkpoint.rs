//! The whole state but the bodies, as frames of records.

use std::io;

use super::frame::Counts;
use super::image::Image;
use super::record;

/// Bytes of one frame: so much is lost when a bit of it flips.
const FRAME: usize = 256 * 1024;

/// Gives the state to `write`, a payload at a time.
pub(super) fn write(image: &Image, mut write: impl FnMut(&[u8], Counts) -> io::Result<()>) -> io::Result<()> {
    let mut out = Vec::with_capacity(FRAME + 1024);
    let mut counts = Counts::default();
    record::next_message(&mut out, image.next_message);
    let mut flush = |out: &mut Vec<u8>, counts: &mut Counts, at_least: usize| {
        if out.len() <= at_least {
            return Ok(());
        }
        write(out, *counts)?;
        out.clear();
        *counts = Counts::default();
        Ok::<(), io::Error>(())
    };
    for (client, kept) in &image.sessions {
        if let Some(facts) = &kept.facts {
            counts.sessions = counts.sessions.saturating_add(1);
            let will = facts.will.as_deref();
            let (identity, expiry) = (facts.identity.as_ref(), facts.expiry_interval_secs);
            record::session(&mut out, client, identity, expiry, will, facts.connected, Some(facts.since.max(1)));
        }
        for (filter, (options, identifier)) in &kept.subscriptions {
            record::subscribed(&mut out, client, filter, options, *identifier);
        }
        kept.received.iter().for_each(|packet_id| record::received_in(&mut out, client, *packet_id));
        for (packet_id, id) in &kept.released {
            record::released_out(&mut out, client, *packet_id, *id);
        }
        for entry in &kept.queue {
            counts.messages = counts.messages.saturating_add(1);
            let mut to = image.queued_for(client, entry);
            to.at_hand = false;
            record::queued(&mut out, entry, &to);
            flush(&mut out, &mut counts, FRAME)?;
        }
        flush(&mut out, &mut counts, FRAME)?;
    }
    for (topic, (place, size)) in &image.retained {
        counts.others = counts.others.saturating_add(1);
        record::retained(&mut out, topic, place.segment, place.offset, *size);
        flush(&mut out, &mut counts, FRAME)?;
    }
    record::checkpoint_end(&mut out);
    flush(&mut out, &mut counts, 0)
}
