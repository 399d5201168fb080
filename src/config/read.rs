//! Takes a tree apart by the names of the keys and says everything that is wrong with it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::Problem;
use super::listeners::{ListenerDefaults, listeners};
use super::reader::{Reader, Section};
use super::settings::{
    Acme, Admission, AtExpiry, Challenge, Log, LogDestination, LogFormat, Settings, TlsVersion, Transport,
};
use super::tree::{Located, Origin, Source};
use crate::broker::{Limits, QueuePolicy};
use crate::pki::ServerName;
use crate::store::Durability;
use crate::types::QoS;

/// `None` where so much is missing that nothing can be made of it; `problems` says what.
pub(super) fn settings(source: &Source, root: Located, problems: &mut Vec<Problem>) -> Option<Settings> {
    let mut reader = Reader { source, problems };
    let mut root = reader.section(root, "the configuration")?;
    let name = reader.text(&mut root, "name").unwrap_or_else(|| "lockgate".to_owned());
    let user = reader.text(&mut root, "user").filter(|text| text != "none");
    let data = reader.path(&mut root, "data").unwrap_or_else(|| reader.relative("../data"));
    let pki = reader.path(&mut root, "pki").unwrap_or_else(|| reader.relative("../pki"));
    let passwords = reader.optional_path(&mut root, "passwords", "passwd");
    let acl = reader.optional_path(&mut root, "acl", "acl");
    let identities = reader.optional_path(&mut root, "identities", "identities.yaml");
    let rehash = reader.boolean(&mut root, "rehash").unwrap_or(false);
    let self_renew = reader.boolean(&mut root, "self-renew").unwrap_or(false);
    let at_expiries = [("disconnect", AtExpiry::Disconnect), ("keep", AtExpiry::Keep)];
    let at_expiry = reader.choice(&mut root, "at-expiry", &at_expiries).unwrap_or_default();
    let shards_at = root.entries.iter().find(|(name, _, _)| name == "shards").map(|(_, _, value)| value.origin.clone());
    let shards = reader.number(&mut root, "shards", 1..=64).unwrap_or(1) as u16;
    let durabilities = Durability::ALL.map(|durability| (durability.as_str(), durability));
    let durability = reader.choice(&mut root, "durability", &durabilities).unwrap_or_default();
    let commit_delay = Duration::from_millis(reader.millis(&mut root, "commit-delay", 0..=10_000).unwrap_or(0));
    if let Some(origin) = shards_at.filter(|_| shards > 1 && durability != Durability::Off) {
        reader.problem(&origin, "more than one shard keeps nothing yet: `durability: off` goes with it".to_owned());
    }
    let sys_interval = reader.duration_or(&mut root, "sys-interval", "none", 1..=65_535).flatten();
    let sys_interval = sys_interval.map(Duration::from_secs);
    let response_information = reader.text(&mut root, "response-information").filter(|text| text != "none");
    let min_version = reader.subsection(&mut root, "tls", |reader, tls| {
        reader.choice(tls, "min-version", &[("1.2", TlsVersion::V12), ("1.3", TlsVersion::V13)])
    });
    let min_version = min_version.flatten().unwrap_or_default();
    let admission = reader.subsection(&mut root, "admission", admission).unwrap_or_default();
    let mut limits = reader.subsection(&mut root, "limits", limits).unwrap_or_default();
    limits.response_information = response_information.map(Box::from);
    let log = reader.subsection(&mut root, "log", log).unwrap_or_default();
    let metrics = reader.subsection(&mut root, "metrics", |reader, section| address(reader, section, 9883)).flatten();
    let enrolment =
        reader.subsection(&mut root, "enrolment", |reader, section| address(reader, section, 8443)).flatten();
    let acme = reader.subsection(&mut root, "acme", acme).flatten();
    let defaults = ListenerDefaults { pki: pki.clone(), min_version, connections_max: admission.connections_max };
    let listeners = listeners(&mut reader, &mut root, &defaults, (&passwords, &acl));
    let own_root = listeners
        .iter()
        .any(|listener| matches!(&listener.transport, Transport::Tls(files) if files.server_ca.is_none()));
    let acme = match acme {
        Some((origin, _)) if own_root => {
            let what = "clients do not verify a certificate of this CA by the site's own: each TLS listener needs `server-ca:`, \
                        the root that they are to trust (on Debian /etc/ssl/certs/ISRG_Root_X1.pem for Let's Encrypt)";
            reader.problem(&origin, what.to_owned());
            None
        }
        acme => acme.map(|(_, acme)| acme),
    };
    reader.finish(root);
    Some(Settings {
        file: source.path.clone(),
        name,
        user,
        data,
        pki,
        passwords,
        acl,
        identities,
        rehash,
        self_renew,
        at_expiry,
        shards,
        durability,
        commit_delay,
        listeners,
        admission,
        limits,
        log,
        acme,
        enrolment,
        metrics,
        sys_interval,
        pid_file: None,
        stands_in: false,
        faults: super::Faults::default(),
        control_api: false,
        plugins: Vec::new(),
    })
}

fn admission(reader: &mut Reader<'_>, section: &mut Section) -> Admission {
    let mut read = Admission::default();
    let count = 1..=10_000_000;
    reader.set_usize(section, "connections-max", count.clone(), &mut read.connections_max);
    reader.set_usize(section, "connections-per-address-max", count.clone(), &mut read.connections_per_address_max);
    reader.set_usize(section, "pending-max", count.clone(), &mut read.pending_max);
    reader.set_usize(section, "pending-per-address-max", count, &mut read.pending_per_address_max);
    reader.set_duration(section, "connect-timeout", 1..=3_600, &mut read.connect_timeout);
    reader.set_size(section, "connect-size-max", 1_024..=1_048_576, &mut read.connect_size_max);
    reader.set_usize(section, "hashing-max", 1..=256, &mut read.hashing_max);
    if let Some(count) = reader.number(section, "wrong-passwords-max", 1..=1_000_000) {
        read.wrong_passwords_max = count as u32;
    }
    reader.set_duration(section, "throttle-max", 1..=86_400, &mut read.throttle_max);
    read
}

fn limits(reader: &mut Reader<'_>, section: &mut Section) -> Limits {
    let mut read = Limits::default();
    let count = 1..=1_000_000_000;
    let bytes = 1..=1 << 40;
    if let Some(size) = reader.size(section, "packet-size-max", 1_024..=256 * 1024 * 1024) {
        read.packet_size_max = size as u32;
    }
    for (key, value) in [("inflight-max", &mut read.inflight_max), ("receive-maximum", &mut read.receive_maximum)] {
        if let Some(number) = reader.number(section, key, 1..=65_535) {
            *value = number as u16;
        }
    }
    reader.set_usize(section, "queued-messages-max", count.clone(), &mut read.queued_messages_max);
    reader.set_size(section, "queued-bytes-max", bytes.clone(), &mut read.queued_bytes_max);
    reader.set_size(section, "inflight-bytes-max", bytes.clone(), &mut read.inflight_bytes_max);
    let policies = [("drop-new", QueuePolicy::DropNew), ("drop-oldest", QueuePolicy::DropOldest)];
    read.queue_policy = reader.choice(section, "queue-policy", &policies).unwrap_or_default();
    reader.set_size(section, "backlog-bytes-max", 1_024..=1 << 32, &mut read.backlog_bytes_max);
    reader.set_usize(section, "subscriptions-max", count.clone(), &mut read.subscriptions_max);
    reader.set_usize(section, "filters-per-subscribe-max", count.clone(), &mut read.filters_per_subscribe_max);
    reader.set_usize(section, "topic-levels-max", 1..=65_536, &mut read.topic_levels_max);
    reader.set_usize(section, "topic-bytes-max", 1..=65_535, &mut read.topic_bytes_max);
    reader.set_usize(section, "retained-messages-max", count.clone(), &mut read.retained_messages_max);
    reader.set_size(section, "retained-bytes-max", bytes, &mut read.retained_bytes_max);
    reader.set_usize(section, "sessions-max", count, &mut read.sessions_max);
    if let Some(size) = reader.size(section, "payload-size-max", 1..=256 * 1024 * 1024) {
        read.payload_size_max = size as usize;
    }
    let levels = [("0", QoS::AtMostOnce), ("1", QoS::AtLeastOnce), ("2", QoS::ExactlyOnce)];
    read.qos_max = reader.choice(section, "qos-max", &levels).unwrap_or(read.qos_max);
    read.retain_available = reader.boolean(section, "retain-available").unwrap_or(read.retain_available);
    for (key, value) in [
        ("queue-qos-0", &mut read.queues_qos_0),
        ("upgrade-qos", &mut read.upgrades_qos),
        ("check-retained-source", &mut read.checks_retained_source),
        ("sparkplug-aware", &mut read.sparkplug_aware),
    ] {
        *value = reader.boolean(section, key).unwrap_or(*value);
    }
    if let Some(secs) = reader.duration_or(section, "session-expiry-max", "never", 1..=u64::from(u32::MAX)) {
        read.session_expiry_secs_max = secs.map_or(u32::MAX, |secs| secs as u32);
    }
    if let Some(secs) = reader.duration_or(section, "keep-alive-max", "none", 1..=65_535) {
        read.keep_alive_secs_max = secs.unwrap_or(0) as u16;
    }
    let aliases =
        [("topic-alias-max", &mut read.topic_alias_max), ("client-topic-alias-max", &mut read.client_topic_alias_max)];
    for (key, value) in aliases {
        if let Some(number) = reader.number(section, key, 0..=65_535) {
            *value = number as u16;
        }
    }
    read
}

fn log(reader: &mut Reader<'_>, section: &mut Section) -> Log {
    let mut read = Log::default();
    if let Some((origin, text)) = reader.scalar(section, "level") {
        let levels = ["error", "warn", "info", "debug", "trace", "off"];
        // A bare word would be taken for a target's name and silence all others.
        let bare = text.split(',').find(|part| !part.contains('=') && !levels.contains(&part.trim()));
        match tracing_subscriber::EnvFilter::try_new(&text) {
            _ if bare.is_some() => reader.problem(
                &origin,
                format!("level is error, warn, info, debug or trace, or a list as in info,lockgate::gate=debug; not {:?}", bare.unwrap_or_default()),
            ),
            Ok(_) => read.level = text,
            Err(error) => reader.problem(
                &origin,
                format!("{text:?} is no log level: error, warn, info, debug or trace, or a list as in info,lockgate::gate=debug ({error})"),
            ),
        }
    }
    if let Some((origin, text)) = reader.scalar(section, "to") {
        read.destinations = text
            .split_whitespace()
            .map(|word| match word {
                "stderr" => LogDestination::Stderr,
                "stdout" => LogDestination::Stdout,
                "syslog" => LogDestination::Syslog,
                "topic" => LogDestination::Topic,
                file => LogDestination::File(reader.relative(file)),
            })
            .collect();
        if read.destinations.is_empty() {
            reader.problem(
                &origin,
                "to is stderr, stdout, syslog, topic or a file, several with spaces between".to_owned(),
            );
        }
    }
    read.format =
        reader.choice(section, "format", &[("human", LogFormat::Human), ("json", LogFormat::Json)]).unwrap_or_default();
    read
}

/// Where something beside MQTT is served; `usual` is the port of the example.
fn address(reader: &mut Reader<'_>, section: &mut Section, usual: u16) -> Option<SocketAddr> {
    let (origin, text) = reader.scalar(section, "address")?;
    if text == "off" || text == "false" {
        return None;
    }
    match text.replace("loopback:", "127.0.0.1:").parse() {
        Ok(address) => Some(address),
        Err(_) => {
            reader.problem(&origin, format!("{text:?} is no address with a port: 127.0.0.1:{usual}, or off"));
            None
        }
    }
}

/// A CA that speaks ACME, and where that was written.
fn acme(reader: &mut Reader<'_>, section: &mut Section) -> Option<(Origin, Acme)> {
    let directory = reader.scalar(section, "directory");
    let names = reader.scalar(section, "names");
    let contact = reader.text(section, "contact").filter(|text| text != "none");
    let challenges = [Challenge::Http01, Challenge::TlsAlpn01].map(|challenge| (challenge.as_str(), challenge));
    let challenge = reader.choice(section, "challenge", &challenges).unwrap_or_default();
    let address = address(reader, section, challenge.port());
    let address = address.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), challenge.port()));
    let agreed = reader.boolean(section, "terms-agreed").unwrap_or(false);
    let roots = reader.text(section, "roots").filter(|text| text != "system").map(|text| reader.relative(&text));
    let (origin, directory) = directory.filter(|(_, text)| text != "off" && text != "false")?;
    if !directory.starts_with("https://") {
        reader.problem(&origin, format!("{directory:?} is no ACME directory: https://HOST/PATH, or off"));
    }
    if !agreed {
        reader.problem(&origin, "read this CA's terms of service, then set `terms-agreed: true`".to_owned());
    }
    let (at, text) = names.unwrap_or((origin.clone(), String::new()));
    let names: Result<Vec<ServerName>, _> = text.split_whitespace().map(ServerName::parse).collect();
    let names = match names {
        Ok(names) if !names.is_empty() && text != "none" => names,
        Ok(_) => {
            reader.problem(&at, "`names:` says what the certificate is for: broker.example mqtt.example".to_owned());
            Vec::new()
        }
        Err(error) => {
            reader.problem(&at, error.to_string());
            Vec::new()
        }
    };
    Some((origin, Acme { directory, names, contact, challenge, address, roots }))
}
