//! Many of everything; `LOCKGATE_FULL` has the numbers in full.

use std::collections::BTreeMap;

use lockgate::broker::Limits;

use crate::rig::{Rig, client};

fn number(short: usize, full: usize) -> usize {
    if std::env::var_os("LOCKGATE_FULL").is_some() { full } else { short }
}

#[test]
fn a_hash_over_many_retained_messages_streams_within_its_queue_while_live_ones_go_on() {
    // design section 2: register first, scan second; each retained message once, none after a newer live one.
    let count = number(50_000, 1_000_000);
    let limits = Limits { queued_messages_max: 1_000, ..Limits::default() };
    let most = limits.queued_messages_max;
    let mut rig = Rig::with(limits, lockgate::auth::Acl::open(), false);
    let publisher = rig.join(client("p"));
    for at in 0..count {
        rig.retain(publisher, &format!("t/{at:07}"), "0");
    }
    let id = rig.join(client("s"));
    rig.subscribe_with(id, &[("#", 1)], &[]);
    let mut newest: BTreeMap<String, u32> = BTreeMap::new();
    let mut retained = 0;
    let mut turn = 0;
    loop {
        let got = rig.take(id);
        for text in got.iter().filter(|text| text.starts_with("PUBLISH")) {
            let parts: Vec<&str> = text.split(' ').collect();
            let value: u32 = parts[2].parse().unwrap();
            let known = newest.entry(parts[1].to_owned()).or_insert(value);
            assert!(value >= *known, "{text} after {known}");
            *known = value;
            retained += usize::from(text.ends_with(" retain"));
            if let Some(packet_id) = parts.iter().find_map(|part| part.strip_prefix('#')) {
                rig.puback(id, packet_id.parse().unwrap());
            }
        }
        let session = rig.core.sessions().into_iter().find(|session| session.client.as_str() == "s").unwrap();
        assert!(session.queued_messages <= most, "{session:?}");
        if newest.len() == count && got.is_empty() {
            break;
        }
        // A live message now and then: ahead of the scan, and behind it; some replace what is retained.
        turn += 1;
        if turn % 10 == 0 {
            let at = (turn * 7_919) % count;
            rig.publish_with(publisher, &format!("t/{at:07}"), &turn.to_string(), u8::from(turn % 20 == 0), 0, &[]);
        }
        if rig.core.next_deadline(rig.now).is_some_and(|due| due <= rig.now) {
            rig.handle_timer();
        }
        assert!(turn < 20 * count, "the scan does not end");
    }
    assert!(retained > 0 && retained <= count);
}
