//! The listeners of a configuration.

use std::path::PathBuf;
use std::sync::Arc;

use super::reader::{Reader, Section};
use super::settings::{
    ClientCerts, ClientIds, Listener, ListenerAddress, ListenerFiles, TlsFiles, TlsVersion, Transport, WebSocket,
    set_realms,
};
use super::tree::Node;
use crate::auth::{IdentityRule, ListenerRules};
use crate::types::{Entrance, Level, QoS, Topic};

/// What listeners have that do not say otherwise.
pub(super) struct ListenerDefaults {
    pub(super) pki: PathBuf,
    pub(super) min_version: TlsVersion,
    pub(super) connections_max: usize,
}

/// `files`: passwords and ACL of the site.
pub(super) fn listeners(
    reader: &mut Reader<'_>,
    root: &mut Section,
    defaults: &ListenerDefaults,
    files: (&Option<PathBuf>, &Option<PathBuf>),
) -> Vec<Listener> {
    let Some((origin, located)) = root.take("listeners") else {
        return default_pair(defaults);
    };
    let Node::List(list) = located.node else {
        let what = format!("listeners is a list, this is {}: begin each with `- address:`", located.node.kind());
        reader.problem(&origin, what);
        return Vec::new();
    };
    if list.is_empty() {
        reader.problem(
            &origin,
            "there is no listener: nobody could connect; leave `listeners` out for 1883 and 8883".to_owned(),
        );
    }
    let mut listeners: Vec<Listener> = Vec::new();
    for item in list {
        let origin = item.origin.clone();
        let Some(mut section) = reader.section(item, "a listener") else { continue };
        let read = listener(reader, &mut section, defaults, files);
        reader.finish(section);
        let Some(read) = read else { continue };
        if let Some(twin) = listeners.iter().find(|known| known.address == read.address) {
            let what = format!("{} is there twice", twin.address);
            reader.problem(&origin, what);
        }
        listeners.push(read);
    }
    set_realms(&mut listeners, files);
    listeners
}

fn listener(
    reader: &mut Reader<'_>,
    section: &mut Section,
    defaults: &ListenerDefaults,
    files: (&Option<PathBuf>, &Option<PathBuf>),
) -> Option<Listener> {
    #[derive(Clone, Copy, PartialEq)]
    enum Kind {
        Tcp,
        Tls,
        Unix,
        Ws,
        Wss,
    }
    let kind = reader
        .choice(
            section,
            "transport",
            &[("tcp", Kind::Tcp), ("tls", Kind::Tls), ("unix", Kind::Unix), ("ws", Kind::Ws), ("wss", Kind::Wss)],
        )
        .unwrap_or(Kind::Tcp);
    let address = match kind {
        Kind::Unix => {
            let path = reader.path(section, "path");
            if path.is_none() {
                let what = "a unix listener needs `path:`, the socket's place".to_owned();
                reader.problem(&section.origin.clone(), what);
            }
            path.map(ListenerAddress::Unix)
        }
        _ => {
            let default_port = match kind {
                Kind::Tls => 8883,
                Kind::Ws => 8083,
                Kind::Wss => 8084,
                Kind::Tcp | Kind::Unix => 1883,
            };
            let port = reader.number(section, "port", 0..=65_535).unwrap_or(default_port) as u16;
            let address = section.take("address");
            match address {
                None => Some(ListenerAddress::Loopback(port)),
                Some((_, value)) => reader.address(value, port),
            }
        }
    };
    let transport = match kind {
        Kind::Tcp | Kind::Ws => Transport::Tcp,
        Kind::Unix => Transport::Unix,
        Kind::Tls | Kind::Wss => {
            let named =
                [("off", ClientCerts::Off), ("optional", ClientCerts::Optional), ("required", ClientCerts::Required)];
            Transport::Tls(TlsFiles {
                certificate: reader.path(section, "certificate").unwrap_or_else(|| defaults.pki.join("server.crt")),
                key: reader.path(section, "key").unwrap_or_else(|| defaults.pki.join("server.key")),
                client_ca: reader.path(section, "client-ca").unwrap_or_else(|| defaults.pki.join("ca.crt")),
                client_crl: match reader.text(section, "client-crl") {
                    Some(text) if text != "none" => Some(reader.relative(&text)),
                    _ => None,
                },
                server_ca: match reader.text(section, "server-ca") {
                    Some(text) if text != "own" => Some(reader.relative(&text)),
                    _ => None,
                },
                client_certs: reader.choice(section, "client-certs", &named).unwrap_or_default(),
                min_version: defaults.min_version,
                client_ca_folder: None,
                cipher_suites: Vec::new(),
                key_log: None,
            })
        }
    };
    let websocket =
        matches!(kind, Kind::Ws | Kind::Wss).then(|| WebSocket { origins: origins(reader, section, &transport) });
    let rules = ListenerRules {
        identity: reader
            .choice(
                section,
                "identity",
                &[
                    ("default", IdentityRule::Default),
                    ("cn", IdentityRule::CommonName),
                    ("subject", IdentityRule::Subject),
                    ("user-name", IdentityRule::UserName),
                ],
            )
            .unwrap_or_default(),
        allow_anonymous: reader.boolean(section, "allow-anonymous").unwrap_or(false),
        min_level: reader
            .choice(section, "min-level", &[("plain", Level::Plain), ("tls", Level::Tls), ("mtls", Level::Mtls)])
            .unwrap_or_default(),
        foreign: false,
        unchecked: false,
    };
    let reachable = match &transport {
        Transport::Tls(files) if files.client_certs == ClientCerts::Off => Level::Tls,
        Transport::Tls(_) => Level::Mtls,
        Transport::Tcp | Transport::Unix => Level::Plain,
    };
    if rules.min_level > reachable
        || (matches!(rules.identity, IdentityRule::CommonName | IdentityRule::Subject) && reachable < Level::Mtls)
    {
        let what = format!("nobody could come in here: on this listener clients reach level {reachable} at most");
        reader.problem(&section.origin.clone(), what);
    }
    let proxied = kind != Kind::Unix && reader.boolean(section, "proxy-protocol").unwrap_or(false);
    let connections_max = reader
        .number(section, "connections-max", 1..=10_000_000)
        .map_or(defaults.connections_max, |count| count as usize);
    let entrance = Entrance {
        mount_point: mount_point(reader, section),
        qos_max: qos_max(reader, section).unwrap_or(QoS::ExactlyOnce),
        ..Entrance::default()
    };
    let own_passwords = own_file(reader, section, "passwords", files.0);
    let own_acl = own_file(reader, section, "acl", files.1);
    let own = (own_passwords.is_some() || own_acl.is_some()).then(|| ListenerFiles {
        passwords: own_passwords.unwrap_or_else(|| files.0.clone()),
        acl: own_acl.unwrap_or_else(|| files.1.clone()),
    });
    let interface = reader.text(section, "interface").filter(|text| text != "any");
    let versions = versions(reader, section);
    let client_ids = client_ids(reader, section);
    // Its other keys were looked at all the same: all that is wrong is said at once.
    Some(Listener {
        address: address?,
        transport,
        websocket,
        pages: None,
        rules,
        connections_max,
        proxied,
        entrance: Arc::new(entrance),
        files: own,
        interface,
        versions,
        client_ids,
    })
}

/// A file of this listener's in place of the site's; `None`: the site's.
fn own_file(
    reader: &mut Reader<'_>,
    section: &mut Section,
    key: &'static str,
    of_site: &Option<PathBuf>,
) -> Option<Option<PathBuf>> {
    let own = match reader.text(section, key)?.as_str() {
        "site" => None,
        "none" => Some(None),
        file => Some(Some(reader.relative(file))),
    };
    own.filter(|own| own != of_site)
}

fn qos_max(reader: &mut Reader<'_>, section: &mut Section) -> Option<QoS> {
    let levels = [("0", QoS::AtMostOnce), ("1", QoS::AtLeastOnce), ("2", QoS::ExactlyOnce)];
    reader.choice(section, "qos-max", &levels)
}

/// `3.1 3.1.1 5.0`, some of them.
fn versions(reader: &mut Reader<'_>, section: &mut Section) -> [bool; 3] {
    let Some((origin, text)) = reader.scalar(section, "versions").filter(|(_, text)| text != "all") else {
        return [true; 3];
    };
    let known = ["3.1", "3.1.1", "5.0"];
    let words: Vec<&str> = text.split_whitespace().collect();
    if words.is_empty() || words.iter().any(|word| !known.contains(word)) {
        reader.problem(&origin, format!("versions are all, or some of 3.1 3.1.1 5.0, not {text:?}"));
    }
    known.map(|version| words.contains(&version))
}

fn client_ids(reader: &mut Reader<'_>, section: &mut Section) -> ClientIds {
    let mut read = ClientIds::default();
    read.from_user_name = reader.boolean(section, "client-id-from-user-name").unwrap_or(read.from_user_name);
    read.may_be_empty = reader.boolean(section, "empty-client-id").unwrap_or(read.may_be_empty);
    read.prefix = reader.text(section, "assigned-id-prefix").unwrap_or(read.prefix);
    read.required_prefix = reader.text(section, "client-id-prefix").filter(|text| text != "none");
    read
}

/// What is put before the topics of a listener's clients.
fn mount_point(reader: &mut Reader<'_>, section: &mut Section) -> Box<str> {
    let Some((origin, text)) = reader.scalar(section, "mount-point").filter(|(_, text)| text != "none") else {
        return Box::default();
    };
    if Topic::parse(&format!("{text}x")).is_err() || text.len() > 1_024 {
        let what = format!("{text:?} cannot be put before topics: site1/, say, without + and #; or none");
        reader.problem(&origin, what);
    }
    text.into()
}

/// Whose scripts may come in by WebSocket. A browser shows a client's certificate whoever's page asks for it: where
/// certificates count none may unless they are named.
fn origins(reader: &mut Reader<'_>, section: &mut Section, transport: &Transport) -> Vec<String> {
    let ambient = matches!(transport, Transport::Tls(files) if files.client_certs != ClientCerts::Off);
    let Some((origin, text)) = reader.scalar(section, "origins") else {
        return if ambient { Vec::new() } else { vec!["*".to_owned()] };
    };
    match text.as_str() {
        "any" => vec!["*".to_owned()],
        "none" => Vec::new(),
        list => {
            let wrong = list.split_whitespace().find(|origin| !origin.contains("://") || origin.ends_with('/'));
            if let Some(wrong) = wrong {
                reader.problem(
                    &origin,
                    format!("{wrong:?} is no origin: https://panel.example, without a path; several with spaces between; any or none"),
                );
            }
            list.split_whitespace().map(str::to_owned).collect()
        }
    }
}

/// 1883 on loopback, 8883 with TLS for all.
fn default_pair(defaults: &ListenerDefaults) -> Vec<Listener> {
    let rules = ListenerRules::default();
    let files = TlsFiles {
        certificate: defaults.pki.join("server.crt"),
        key: defaults.pki.join("server.key"),
        client_ca: defaults.pki.join("ca.crt"),
        client_crl: None,
        server_ca: None,
        client_certs: ClientCerts::Optional,
        min_version: defaults.min_version,
        client_ca_folder: None,
        cipher_suites: Vec::new(),
        key_log: None,
    };
    let listener = |address, transport| Listener {
        address,
        transport,
        websocket: None,
        pages: None,
        rules,
        connections_max: defaults.connections_max,
        proxied: false,
        entrance: Arc::default(),
        files: None,
        interface: None,
        versions: [true; 3],
        client_ids: ClientIds::default(),
    };
    vec![
        listener(ListenerAddress::Loopback(1883), Transport::Tcp),
        listener(ListenerAddress::All(8883), Transport::Tls(files)),
    ]
}
