//! One listener: what its options say, and what it comes to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs};
use std::path::PathBuf;

use super::plugins::{Loaded, with_used};
use super::value::unlimited;
use super::{Line, Wrong, ciphers};
use crate::auth::{IdentityRule, ListenerRules};
use crate::config::{
    ClientCerts, ClientIds, KeyLog, Listener, ListenerAddress, ListenerFiles, Pages, TlsFiles, TlsVersion, Transport,
    WebSocket,
};
use crate::types::{Entrance, Level, QoS, Realm};

/// What a listener has, as far as it was read.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Door {
    /// `None`: a default listener's that has not been given one.
    pub(super) port: Option<u16>,
    pub(super) host: Option<String>,
    pub(super) unix: Option<PathBuf>,
    pub(super) interface: Option<String>,
    pub(super) proxied: bool,
    pub(super) ipv4: Option<bool>,
    pub(super) protocol: Protocol,
    pub(super) http_dir: Option<PathBuf>,
    /// Of the plugins that were loaded, those that it uses.
    pub(super) uses: Vec<usize>,
    pub(super) origins: Vec<String>,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) ca: Option<PathBuf>,
    pub(super) ca_folder: Option<PathBuf>,
    pub(super) crl: Option<PathBuf>,
    pub(super) require_certificate: bool,
    pub(super) by_identity: bool,
    pub(super) by_subject: bool,
    pub(super) tls_version: TlsVersion,
    pub(super) ciphers: Option<String>,
    pub(super) ciphers_tls13: Option<String>,
    pub(super) mount_point: String,
    pub(super) connections_max: Option<usize>,
    pub(super) qos_max: Option<QoS>,
    pub(super) topic_alias_max: Option<u16>,
    pub(super) topic_alias_max_broker: Option<u16>,
    pub(super) versions: Option<[bool; 3]>,
    pub(super) id_from_user_name: bool,
    pub(super) allow_anonymous: Option<bool>,
    pub(super) security: Security,
}

/// What is spoken on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Protocol {
    #[default]
    Mqtt,
    WebSockets,
    HttpApi,
}

/// Options that hold for all, or with `per_listener_settings` for one listener.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Security {
    pub(super) allow_anonymous: Option<bool>,
    pub(super) passwords: Option<PathBuf>,
    pub(super) acl: Option<PathBuf>,
    pub(super) empty_id: Option<bool>,
    pub(super) id_prefix: Option<String>,
}

/// Options that need a `listener` before them.
pub(super) const EXPLICIT: [&str; 12] = [
    "cafile",
    "capath",
    "max_topic_alias",
    "max_topic_alias_broker",
    "tls_version",
    "mount_point",
    "websockets_origin",
    "http_dir",
    "listener_allow_anonymous",
    "listener_auto_id_prefix",
    "enable_proxy_protocol",
    "ciphers_tls1.3",
];

/// What holds for every listener.
pub(super) struct Common<'a> {
    pub(super) security: &'a Security,
    /// Each listener has its own.
    pub(super) per_listener: bool,
    /// No listener is named: this machine alone, and anybody.
    pub(super) local_only: bool,
    /// What every client id has to begin with.
    pub(super) id_prefix: Option<&'a str>,
    pub(super) key_log: Option<&'a KeyLog>,
    pub(super) loaded: &'a [Loaded],
}

impl Door {
    pub(super) fn apply(&mut self, line: &Line<'_>) -> Result<(), Wrong> {
        let door = self;
        match line.name {
            "bind_interface" => door.interface = Some(line.text()?),
            "enable_proxy_protocol" => {
                // Either version is taken.
                line.number(1..=2)?;
                door.proxied = true;
            }
            "socket_domain" => {
                door.ipv4 = Some(match line.value {
                    "ipv4" => true,
                    "ipv6" => false,
                    other => {
                        return Err(Wrong::new(format!("Invalid socket_domain value \"{other}\" in configuration.")));
                    }
                });
            }
            "protocol" => {
                door.protocol = match line.word() {
                    "mqtt" => Protocol::Mqtt,
                    "websockets" => Protocol::WebSockets,
                    "http_api" => Protocol::HttpApi,
                    other => return Err(Wrong::new(format!("Invalid protocol value ({other})."))),
                };
            }
            "http_dir" => {
                let folder = line.path()?;
                if !folder.is_dir() {
                    return Err(Wrong::new(format!("http_dir {}: there is no such folder.", folder.display())));
                }
                door.http_dir = Some(folder);
            }
            "websockets_origin" => door.origins.push(line.text()?),
            // 0 blocks nobody there.
            "max_connections" => {
                door.connections_max =
                    Some(line.signed()?).filter(|count| *count > 0).map(|count| unlimited(count, 10_000_000));
            }
            "max_qos" | "maximum_qos" => {
                door.qos_max = Some(match line.number(0..=2) {
                    Ok(0) => QoS::AtMostOnce,
                    Ok(1) => QoS::AtLeastOnce,
                    Ok(_) => QoS::ExactlyOnce,
                    Err(_) => return Err(Wrong::new("max_qos must be between 0 and 2 inclusive.")),
                });
            }
            "max_topic_alias" => door.topic_alias_max = Some(line.number(0..=65_535)? as u16),
            "max_topic_alias_broker" => door.topic_alias_max_broker = Some(line.number(0..=65_535)? as u16),
            "accept_protocol_versions" => {
                let mut versions = [false; 3];
                for word in line.value.split([',', ' ']).filter(|word| !word.is_empty()) {
                    match word {
                        "3" => versions[0] = true,
                        "4" => versions[1] = true,
                        "5" => versions[2] = true,
                        other => return Err(Wrong::new(format!("Invalid accept_protocol_versions value ({other})."))),
                    }
                }
                door.versions = Some(versions);
            }
            "use_username_as_clientid" => door.id_from_user_name = line.boolean()?,
            "listener_allow_anonymous" => door.allow_anonymous = Some(line.boolean()?),
            "listener_auto_id_prefix" => door.security.id_prefix = Some(line.prefix()?),
            "certfile" => door.certificate = Some(line.path()?),
            "keyfile" => door.key = Some(line.path()?),
            "cafile" => door.ca = Some(line.path()?),
            "capath" => door.ca_folder = Some(line.path()?),
            "ciphers" => door.ciphers = Some(line.text()?),
            "ciphers_tls1.3" => door.ciphers_tls13 = Some(line.text()?),
            "mount_point" => {
                let prefix = line.text()?;
                if prefix.contains(['+', '#']) || prefix.len() > 1_024 {
                    return Err(Wrong::new(format!(
                        "Invalid mount_point '{prefix}'. Does it contain a wildcard character?"
                    )));
                }
                door.mount_point = prefix;
            }
            "crlfile" => door.crl = Some(line.path()?),
            "require_certificate" => door.require_certificate = line.boolean()?,
            "use_identity_as_username" => door.by_identity = line.boolean()?,
            "use_subject_as_username" => door.by_subject = line.boolean()?,
            "tls_version" => {
                door.tls_version = match line.value {
                    "tlsv1.3" => TlsVersion::V13,
                    "tlsv1.2" => TlsVersion::V12,
                    other => return Err(Wrong::new(format!("Unsupported tls_version \"{other}\"."))),
                };
            }
            other => unreachable!("{other} is among the options and nobody takes it"),
        }
        Ok(())
    }

    pub(super) fn opened(&self, common: &Common<'_>) -> Result<Listener, Wrong> {
        let door = self;
        let local_only = common.local_only;
        let used: Vec<&Loaded> = door.uses.iter().map(|at| &common.loaded[*at]).collect();
        let security = if common.per_listener { &door.security } else { common.security };
        let security = &with_used(security, &used)?;
        let address = match (&door.unix, door.port.unwrap_or(1883)) {
            (Some(path), _) => ListenerAddress::Unix(path.clone()),
            (None, port) if local_only => ListenerAddress::Loopback(port),
            (None, port) => place(door, port)?,
        };
        let transport = self.transport(common.key_log)?;
        if door.protocol != Protocol::Mqtt && door.unix.is_some() {
            return Err(Wrong::new("protocol websockets and http_api go with a port, not with a Unix socket."));
        }
        let anonymous = door.allow_anonymous.or(security.allow_anonymous).unwrap_or(local_only);
        let rules = ListenerRules {
            identity: match (door.by_identity, door.by_subject) {
                (true, _) => IdentityRule::CommonName,
                (false, true) => IdentityRule::Subject,
                (false, false) => IdentityRule::UserName,
            },
            allow_anonymous: anonymous,
            min_level: Level::Plain,
            foreign: true,
            unchecked: security.passwords.is_none(),
        };
        let entrance = Entrance {
            // Set once all listeners are known.
            realm: Realm::SITE,
            mount_point: door.mount_point.clone().into(),
            qos_max: door.qos_max.unwrap_or(QoS::ExactlyOnce),
            topic_alias_max: door.topic_alias_max.unwrap_or(10),
            client_topic_alias_max: door.topic_alias_max_broker.unwrap_or(10),
        };
        Ok(Listener {
            address,
            transport: if door.unix.is_some() { Transport::Unix } else { transport },
            pages: match (door.protocol, &door.http_dir) {
                (Protocol::HttpApi, folder) => Some(Pages { api: true, folder: folder.clone() }),
                (Protocol::WebSockets, Some(folder)) => Some(Pages { api: false, folder: Some(folder.clone()) }),
                _ => None,
            },
            websocket: (door.protocol == Protocol::WebSockets).then(|| WebSocket {
                origins: if door.origins.is_empty() { vec!["*".to_owned()] } else { door.origins.clone() },
            }),
            rules,
            connections_max: door.connections_max.unwrap_or(10_000_000),
            proxied: door.proxied,
            interface: door.interface.clone(),
            entrance: entrance.into(),
            files: (common.per_listener || !used.is_empty())
                .then(|| ListenerFiles { passwords: security.passwords.clone(), acl: security.acl.clone() }),
            versions: door.versions.unwrap_or([true; 3]),
            client_ids: ClientIds {
                from_user_name: door.id_from_user_name,
                required_prefix: common.id_prefix.map(str::to_owned),
                may_be_empty: security.empty_id.unwrap_or(true),
                prefix: door
                    .security
                    .id_prefix
                    .clone()
                    .or(security.id_prefix.clone())
                    .unwrap_or_else(|| "auto-".to_owned()),
            },
        })
    }

    fn transport(&self, key_log: Option<&KeyLog>) -> Result<Transport, Wrong> {
        let door = self;
        let (certificate, key) = match (&door.certificate, &door.key) {
            (None, None) if door.require_certificate || door.by_identity || door.by_subject => {
                return Err(Wrong::new("require_certificate and use_identity_as_username need certfile and keyfile."));
            }
            (None, None) => return Ok(Transport::Tcp),
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
            _ => return Err(Wrong::new("Both certfile and keyfile must be provided to enable a TLS listener.")),
        };
        let by_certificate = door.by_identity || door.by_subject;
        let trusted = door.ca.as_ref().or(door.ca_folder.as_ref());
        let client_certs = match (trusted, door.require_certificate) {
            (None, true) => {
                return Err(Wrong::new(
                    "require_certificate needs cafile or capath: who signs the clients' certificates.",
                ));
            }
            (Some(_), true) => ClientCerts::Required,
            (Some(_), false) if by_certificate => ClientCerts::Optional,
            _ => ClientCerts::Off,
        };
        Ok(Transport::Tls(TlsFiles {
            client_ca: trusted.unwrap_or(&certificate).clone(),
            client_ca_folder: door.ca_folder.clone().filter(|_| door.ca.is_some()),
            certificate,
            key,
            client_crl: door.crl.clone(),
            server_ca: None,
            client_certs,
            min_version: door.tls_version,
            cipher_suites: ciphers::suites(door.ciphers.as_deref(), door.ciphers_tls13.as_deref())?,
            key_log: key_log.cloned(),
        }))
    }
}

/// Where a listener with a host, or one family alone, is bound.
fn place(door: &Door, port: u16) -> Result<ListenerAddress, Wrong> {
    let fits = |address: &IpAddr| door.ipv4.is_none_or(|ipv4| address.is_ipv4() == ipv4);
    let Some(host) = &door.host else {
        return Ok(match door.ipv4 {
            None => ListenerAddress::All(port),
            Some(true) => ListenerAddress::Ip(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
            Some(false) => ListenerAddress::Ip(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
        });
    };
    if host == "localhost" && door.ipv4.is_none() {
        return Ok(ListenerAddress::Loopback(port));
    }
    let found = (host.as_str(), port)
        .to_socket_addrs()
        .map_err(|error| Wrong::new(format!("Error creating listener: {host}: {error}.")))?;
    let address = found.map(|address| address.ip()).find(fits);
    let address = address.ok_or_else(|| Wrong::new(format!("{host} has no address of this socket_domain.")))?;
    Ok(ListenerAddress::Ip(address, port))
}
