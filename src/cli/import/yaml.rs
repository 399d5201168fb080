//! The configuration that says what a mosquitto.conf said, with a word on what is better.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;

use super::Places;
use crate::auth::IdentityRule;
use crate::broker::Limits;
use crate::config::mosquitto::default_limits;
use crate::config::{
    Admission, ClientCerts, ClientIds, Listener, ListenerAddress, LogDestination, Settings, TlsFiles, TlsVersion,
    Transport,
};
use crate::store::Durability;
use crate::types::QoS;

/// `theirs`: what was read from `file`.
pub(super) fn render(theirs: &Settings, file: &Path, places: &Places, local_only: bool) -> String {
    let mut text = String::new();
    let out = &mut text;
    // There for who is added, though nobody is in it yet.
    let passwords = theirs.passwords.as_ref().map_or("passwd", |path| Places::name(&places.passwords, Some(path)));
    let acl = Places::name(&places.acls, theirs.acl.as_ref());
    put(
        out,
        &format!(
            "# The configuration of this Lockgate broker, brought over from {}.
# A key that is not here has its default; `lockgate init` in an empty folder writes a file with all of them.
# `lockgate serve --check` examines it; `lockgate reload` puts a change into effect.

name: mosquitto
user: none                         # Mosquitto became {} when root started it: that user's name here does the same
data: ../data
pki: ../pki
passwords: {passwords}
# Better: hashes that are quick to guess at become argon2id when their owners log in, and wrong passwords are throttled.
rehash: true
acl: {acl}
# Better: a subscription that the ACL denies is refused by SUBACK; Mosquitto grants it and keeps silent.
identities: identities.yaml",
            file.display(),
            theirs.user.as_deref().unwrap_or("nobody else"),
        ),
    );
    put(
        out,
        match theirs.durability {
            Durability::Off => {
                "# Better: sessions, queued and retained messages survive; Mosquitto was told to keep nothing (`off` does that here)."
            }
            _ => "# Better: what is acknowledged is on the disk at once, and not when autosave comes round.",
        },
    );
    put(out, "durability: fsync\n");
    put(out, "listeners:");
    for listener in &theirs.listeners {
        self::listener(out, theirs, listener, places, local_only);
    }
    if theirs.tls_files().next().is_none() {
        put(
            out,
            "  # Better, once `lockgate init` has made a CA and certificates: TLS.\n  # - address: all\n  #   port: 8883\n  #   transport: tls",
        );
    }
    limits(out, &theirs.limits);
    if theirs.admission.connections_max != Admission::default().connections_max {
        put(out, &format!("\nadmission:\n  connections-max: {}", theirs.admission.connections_max));
    }
    log(out, theirs);
    let interval = theirs.sys_interval.map_or("none".to_owned(), |interval| format!("{}s", interval.as_secs()));
    put(
        out,
        &format!(
            "\n# Better: $SYS/broker/certificates/... says how many days each certificate has left.\nsys-interval: {interval}"
        ),
    );
    text
}

fn put(out: &mut String, line: &str) {
    writeln!(out, "{line}").expect("a String takes all");
}

/// A text as YAML takes it.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a text")
}

fn absolute(path: &Path) -> String {
    quoted(&std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).to_string_lossy())
}

fn listener(out: &mut String, theirs: &Settings, listener: &Listener, places: &Places, local_only: bool) {
    match &listener.address {
        ListenerAddress::Unix(path) => put(out, &format!("  - transport: unix\n    path: {}", absolute(path))),
        address => {
            let host = match address {
                ListenerAddress::Loopback(_) => "loopback".to_owned(),
                ListenerAddress::Ip(ip @ IpAddr::V6(_), _) => format!("\"{ip}\""),
                ListenerAddress::Ip(ip, _) => ip.to_string(),
                _ => "all".to_owned(),
            };
            let port = address.port().unwrap_or(1883);
            put(out, &format!("  - address: {host}\n    port: {port}\n    transport: {}", listener.transport_name()));
        }
    }
    if let Transport::Tls(files) = &listener.transport {
        tls(out, files, places);
        let identity = match listener.rules.identity {
            IdentityRule::CommonName => "cn",
            IdentityRule::Subject => "subject",
            IdentityRule::UserName | IdentityRule::Default => "user-name",
        };
        put(out, &format!("    identity: {identity}"));
        if identity == "user-name" && files.client_certs != ClientCerts::Off {
            put(
                out,
                "    # A certificate opens the door, and the user name says who it is, as before. Better: `identity: default`, where a\n    # certificate alone is enough, and no password has to lie on the device.",
            );
        }
    }
    let anonymous = listener.rules.allow_anonymous;
    put(out, &format!("    allow-anonymous: {anonymous}"));
    if anonymous && local_only {
        put(out, "    # As Mosquitto without a listener: this machine alone, and anybody.");
    }
    if let Some(files) = &listener.files {
        let (passwords, acl) =
            (Places::name(&places.passwords, files.passwords.as_ref()), Places::name(&places.acls, files.acl.as_ref()));
        put(out, &format!("    passwords: {passwords}\n    acl: {acl}"));
    }
    if listener.connections_max < 10_000_000 {
        put(out, &format!("    connections-max: {}", listener.connections_max));
    }
    if listener.proxied {
        put(out, "    proxy-protocol: true");
    }
    match &listener.websocket {
        Some(web) if web.origins == ["*"] => {
            put(out, "    origins: any                   # Better: name the pages whose scripts may come in");
        }
        Some(web) => put(out, &format!("    origins: {}", web.origins.join(" "))),
        None => {}
    }
    if !listener.entrance.mount_point.is_empty() {
        put(out, &format!("    mount-point: {}", quoted(&listener.entrance.mount_point)));
    }
    if let Some(interface) = &listener.interface {
        put(out, &format!("    interface: {}", quoted(interface)));
    }
    if listener.versions != [true; 3] {
        let known = ["3.1", "3.1.1", "5.0"].into_iter().zip(listener.versions);
        let taken: Vec<&str> = known.filter_map(|(version, taken)| taken.then_some(version)).collect();
        put(out, &format!("    versions: {}", quoted(&taken.join(" "))));
    }
    if listener.entrance.qos_max < QoS::ExactlyOnce {
        put(out, &format!("    qos-max: {}", listener.entrance.qos_max.bits()));
    }
    client_ids(out, &listener.client_ids);
    if theirs.listeners.len() > 1 {
        put(out, "");
    }
}

fn tls(out: &mut String, files: &TlsFiles, places: &Places) {
    if places.own.as_ref() == Some(&files.certificate) {
        put(
            out,
            "    certificate: ../pki/server.crt\n    key: ../pki/server.key\n    # Better: `lockgate server renew` makes the next one, `self-renew: true` has the broker do so in time.",
        );
    } else {
        put(
            out,
            &format!(
                "    # It is renewed where it comes from, and taken up when it is.\n    certificate: {}\n    key: {}",
                absolute(&files.certificate),
                absolute(&files.key)
            ),
        );
    }
    let certs = files.client_certs;
    if certs != ClientCerts::Off {
        match places.takes_own(files) {
            true => put(
                out,
                "    client-ca: ../pki/ca.crt\n    # Better: what a certificate may do ends with `lockgate client revoke NAME`, at once and without a list.",
            ),
            false => put(out, &format!("    client-ca: {}", absolute(&files.client_ca))),
        }
        if let Some(list) = files.client_crl.as_ref().filter(|_| !places.takes_own(files)) {
            put(out, &format!("    client-crl: {}", absolute(list)));
        }
    }
    put(out, &format!("    client-certs: {}", certs.as_str()));
}

fn client_ids(out: &mut String, ids: &ClientIds) {
    let usual = ClientIds::default();
    if ids.from_user_name {
        put(out, "    client-id-from-user-name: true");
    }
    if !ids.may_be_empty {
        put(out, "    empty-client-id: false");
    }
    if ids.prefix != usual.prefix {
        put(out, &format!("    assigned-id-prefix: {}", quoted(&ids.prefix)));
    }
    if let Some(prefix) = &ids.required_prefix {
        put(out, &format!("    client-id-prefix: {}", quoted(prefix)));
    }
}

/// Those that mosquitto.conf names; for the others ours hold.
fn limits(out: &mut String, theirs: &Limits) {
    let usual = default_limits();
    let mut lines: Vec<String> = Vec::new();
    let mut number = |key: &str, value: u64, usual: u64, unit: &str| {
        if value != usual {
            lines.push(format!("  {key}: {value}{unit}"));
        }
    };
    let (a, b) = (theirs, &usual);
    number("packet-size-max", u64::from(a.packet_size_max.max(1_024)), u64::from(b.packet_size_max), "B");
    number("inflight-max", a.inflight_max.into(), b.inflight_max.into(), "");
    number("receive-maximum", a.inflight_max.into(), b.inflight_max.into(), "");
    number("queued-messages-max", a.queued_messages_max as u64, b.queued_messages_max as u64, "");
    number("queued-bytes-max", a.queued_bytes_max as u64, b.queued_bytes_max as u64, "B");
    number("inflight-bytes-max", a.inflight_bytes_max as u64, b.inflight_bytes_max as u64, "B");
    number("payload-size-max", (a.payload_size_max as u64).min(256 << 20), b.payload_size_max as u64, "B");
    number("sessions-max", (a.sessions_max as u64).max(1), b.sessions_max as u64, "");
    number("session-expiry-max", a.session_expiry_secs_max.into(), b.session_expiry_secs_max.into(), "s");
    number("keep-alive-max", a.keep_alive_secs_max.into(), b.keep_alive_secs_max.into(), "s");
    for (key, value, usual) in [
        ("retain-available", a.retain_available, b.retain_available),
        ("queue-qos-0", a.queues_qos_0, b.queues_qos_0),
        ("upgrade-qos", a.upgrades_qos, b.upgrades_qos),
        ("check-retained-source", a.checks_retained_source, b.checks_retained_source),
        ("sparkplug-aware", a.sparkplug_aware, b.sparkplug_aware),
    ] {
        if value != usual {
            lines.push(format!("  {key}: {value}"));
        }
    }
    put(
        out,
        "\n# Better: everything that a client may cost has a bound, memory among it. Where mosquitto.conf named one it stands here.",
    );
    match lines.is_empty() {
        true => put(out, "# limits:\n#   queued-messages-max: 10000"),
        false => put(out, &format!("limits:\n{}", lines.join("\n"))),
    }
}

fn log(out: &mut String, theirs: &Settings) {
    let level = theirs.log.level.split(',').next().unwrap_or("info");
    let places: Vec<String> = theirs
        .log
        .destinations
        .iter()
        .filter_map(|destination| match destination {
            LogDestination::Stderr => Some("stderr".to_owned()),
            LogDestination::Stdout => Some("stdout".to_owned()),
            LogDestination::Syslog => Some("syslog".to_owned()),
            LogDestination::Topic => Some("topic".to_owned()),
            // Mosquitto's own, should it ever run again.
            LogDestination::File(_) | LogDestination::Nowhere => None,
        })
        .collect();
    let to = if places.is_empty() { "stderr".to_owned() } else { places.join(" ") };
    put(out, &format!("\nlog:\n  level: {level}\n  to: {}", quoted(&to)));
    if theirs.tls_files().any(|tls| tls.min_version == TlsVersion::V13) {
        put(out, "\ntls:\n  min-version: \"1.3\"");
    }
}
