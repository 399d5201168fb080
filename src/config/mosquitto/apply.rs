//! What the options say, one after the other, and what it comes to.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::options::{Fate, fate};
use super::value::{bounded, unlimited};
use super::{CommandLine, Line, Read, Wrong};
use crate::auth::{IdentityRule, ListenerRules};
use crate::broker::Limits;
use crate::config::{
    Admission, AtExpiry, ClientCerts, ClientIds, Listener, ListenerAddress, Log, LogDestination, LogFormat, LogStyle,
    Settings, TlsFiles, TlsVersion, Transport, WebSocket,
};
use crate::store::Durability;
use crate::types::{Level, QoS};

/// What a listener has, as far as it was read.
#[derive(Clone, Debug, Default)]
struct Door {
    /// `None`: a default listener's that has not been given one.
    port: Option<u16>,
    host: Option<String>,
    unix: Option<PathBuf>,
    interface: Option<String>,
    proxied: bool,
    ipv4: Option<bool>,
    websockets: bool,
    origins: Vec<String>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    ca: Option<PathBuf>,
    crl: Option<PathBuf>,
    require_certificate: bool,
    by_identity: bool,
    by_subject: bool,
    tls_version: TlsVersion,
    connections_max: Option<usize>,
    qos_max: Option<QoS>,
    topic_alias_max: Option<u16>,
    topic_alias_max_broker: Option<u16>,
    versions: Option<[bool; 3]>,
    id_from_user_name: bool,
    allow_anonymous: Option<bool>,
    security: Security,
}

/// Options that hold for all, or with `per_listener_settings` for one listener.
#[derive(Clone, PartialEq, Debug, Default)]
struct Security {
    allow_anonymous: Option<bool>,
    passwords: Option<PathBuf>,
    acl: Option<PathBuf>,
    empty_id: Option<bool>,
    id_prefix: Option<String>,
}

pub(super) struct Draft {
    doors: Vec<Door>,
    /// Which listener the next option is for; each file begins without.
    current: Option<usize>,
    before_include: Vec<Option<usize>>,
    default_door: Option<usize>,
    per_listener: bool,
    security: Security,
    security_said: bool,
    limits: Limits,
    connections_max: Option<usize>,
    user: Option<String>,
    pid_file: Option<PathBuf>,
    sys_interval: Option<u64>,
    persistence: bool,
    location: Option<PathBuf>,
    said: BTreeSet<String>,
    destinations: Vec<LogDestination>,
    types: Vec<String>,
    timestamp: Option<bool>,
    timestamp_format: Option<String>,
    connection_messages: Option<bool>,
    notices: Vec<String>,
}

impl Default for Draft {
    fn default() -> Draft {
        let limits = Limits {
            packet_size_max: 2_000_000,
            inflight_max: 20,
            queued_messages_max: 1000,
            queued_bytes_max: 1 << 40,
            retained_messages_max: 1_000_000_000,
            retained_bytes_max: 1 << 40,
            sessions_max: 100_000_000,
            subscriptions_max: 1_000_000_000,
            grants_all: true,
            topic_levels_max: 201,
            ..Limits::default()
        };
        Draft {
            limits,
            doors: Vec::new(),
            current: None,
            before_include: Vec::new(),
            default_door: None,
            per_listener: false,
            security: Security::default(),
            security_said: false,
            connections_max: None,
            user: None,
            pid_file: None,
            sys_interval: None,
            persistence: false,
            location: None,
            said: BTreeSet::new(),
            destinations: Vec::new(),
            types: Vec::new(),
            timestamp: None,
            timestamp_format: None,
            connection_messages: None,
            notices: Vec::new(),
        }
    }
}

/// Given twice these are an error; others' last one wins.
const ONCE: [&str; 6] =
    ["pid_file", "persistence_file", "persistence_location", "log_timestamp_format", "include_dir", "psk_hint"];

impl Draft {
    pub(super) fn notice(&mut self, path: &Path, line: usize, what: &str) {
        self.notices.push(format!("{}:{line}: {what}", path.display()));
    }

    pub(super) fn begin_file(&mut self) {
        self.before_include.push(self.current.take());
    }

    pub(super) fn resume_file(&mut self) {
        // The included files have each begun and not resumed: what counts is where this one was.
        let depth = 1;
        while self.before_include.len() > depth {
            self.current = self.before_include.pop().flatten();
        }
    }

    pub(super) fn take(&mut self, line: &Line<'_>) -> Result<(), Wrong> {
        let name = line.name;
        let fate = fate(name).ok_or_else(|| Wrong::new(format!("Unknown configuration variable '{name}'")))?;
        if ONCE.contains(&name) && !self.said.insert(name.to_owned()) {
            return Err(Wrong::new(format!("Duplicate {name} value in configuration.")));
        }
        match fate {
            Fate::Same => self.apply(line),
            Fate::Idle(why) => {
                self.notices.push(format!("{name} has no effect here: {why}"));
                Ok(())
            }
            Fate::Refused(instead) | Fate::Later(instead) => {
                // What says that it is off needs nothing.
                let boolean = [
                    "enable_control_api",
                    "upgrade_outgoing_qos",
                    "disable_client_cert_date_checks",
                    "proxy_protocol_v2_require_tls",
                ];
                let off = boolean.contains(&name) && matches!(line.value, "false" | "0");
                if off {
                    return Ok(());
                }
                Err(Wrong::new(format!("{name} is not done here: {instead}.")))
            }
        }
    }

    fn apply(&mut self, line: &Line<'_>) -> Result<(), Wrong> {
        let value = line.value;
        match line.name {
            "user" => self.user = Some(line.text()?),
            "pid_file" => self.pid_file = Some(line.path()?),
            "sys_interval" => self.sys_interval = Some(line.number(0..=65_535)?),
            "max_inflight_messages" => {
                self.limits.inflight_max = bounded(line.number(0..=65_535)?, u16::MAX.into()) as u16
            }
            "max_queued_messages" => {
                self.limits.queued_messages_max = bounded(line.number(0..=u32::MAX.into())?, u32::MAX.into()) as usize
            }
            "max_queued_bytes" => {
                self.limits.queued_bytes_max = bounded(line.number(0..=u64::MAX >> 1)?, 1 << 40) as usize
            }
            "max_packet_size" => match line.number(0..=268_435_455)? {
                size @ 20.. => self.limits.packet_size_max = size as u32,
                size => return Err(Wrong::new(format!("Invalid max_packet_size value ({size})."))),
            },
            "message_size_limit" => {
                self.notices
                    .push("It is recommended to replace `message_size_limit` with `max_packet_size`.".to_owned());
                self.limits.payload_size_max = match line.number(0..=268_435_455)? {
                    0 => usize::MAX,
                    size => size as usize,
                };
            }
            "max_keepalive" => self.limits.keep_alive_secs_max = line.number(0..=65_535)? as u16,
            "global_max_clients" => self.limits.sessions_max = unlimited(line.signed()?, 100_000_000),
            "global_max_connections" => self.connections_max = Some(unlimited(line.signed()?, 10_000_000)),
            "persistent_client_expiration" => self.limits.session_expiry_secs_max = line.expiration()?,
            "retain_available" => self.limits.retain_available = line.boolean()?,
            "connection_messages" => self.connection_messages = Some(line.boolean()?),
            "persistence" | "retained_persistence" => self.persistence = line.boolean()?,
            "persistence_location" => self.location = Some(line.path()?),
            "log_dest" => self.log_dest(line)?,
            "log_type" => self.log_type(value)?,
            "log_timestamp" => self.timestamp = Some(line.boolean()?),
            "log_timestamp_format" => self.timestamp_format = Some(line.text()?),
            "per_listener_settings" => {
                if self.security_said {
                    return Err(Wrong::new("per_listener_settings must be set before any other security settings."));
                }
                self.per_listener = line.boolean()?;
            }
            "listener" => self.listener(value)?,
            "port" => {
                self.deprecated("port", "listener");
                let port = line.number(1..=65_535)? as u16;
                self.default_door().port = Some(port);
            }
            "bind_address" => {
                self.deprecated("bind_address", "listener");
                let host = line.text()?;
                self.default_door().host = Some(host);
            }
            "allow_anonymous" => self.security(line)?.allow_anonymous = Some(line.boolean()?),
            "password_file" => self.security(line)?.passwords = Some(line.path()?),
            "acl_file" => self.security(line)?.acl = Some(line.path()?),
            "allow_zero_length_clientid" => self.security(line)?.empty_id = Some(line.boolean()?),
            "auto_id_prefix" => self.security(line)?.id_prefix = Some(line.prefix()?),
            _ => self.apply_to_door(line)?,
        }
        Ok(())
    }

    fn apply_to_door(&mut self, line: &Line<'_>) -> Result<(), Wrong> {
        let explicit = [
            "cafile",
            "max_topic_alias",
            "max_topic_alias_broker",
            "tls_version",
            "websockets_origin",
            "listener_allow_anonymous",
            "listener_auto_id_prefix",
        ];
        if explicit.contains(&line.name) && self.current.is_none() {
            return Err(Wrong::new(format!("The '{}' option needs a listener before it.", line.name)));
        }
        let door = self.door();
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
                door.websockets = match line.word() {
                    "mqtt" => false,
                    "websockets" => true,
                    other => return Err(Wrong::new(format!("Invalid protocol value ({other})."))),
                };
            }
            "websockets_origin" => door.origins.push(line.text()?),
            // 0 blocks nobody there.
            "max_connections" => door.connections_max = Some(unlimited(line.signed()?.max(0) - 1, 9_999_999) + 1),
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

    fn deprecated(&mut self, old: &str, new: &str) {
        let notice = format!(
            "The '{old}' option is now deprecated and will be removed in a future version. Please use '{new}' instead."
        );
        self.notices.push(notice);
    }

    /// `PORT [HOST | PATH]`.
    fn listener(&mut self, value: &str) -> Result<(), Wrong> {
        let mut words = value.split([' ', '\t']).filter(|word| !word.is_empty());
        let port = words.next().unwrap_or_default();
        let number: u32 = port.parse().map_err(|_| Wrong::new(format!("Invalid listener port '{port}'.")))?;
        let rest = words.next().filter(|word| !word.starts_with('#'));
        let mut door = Door::default();
        match (number, rest) {
            (0, Some(path)) => door.unix = Some(PathBuf::from(path)),
            (0, None) => return Err(Wrong::new("A listener with port 0 must provide a Unix socket path.")),
            (1..=65_535, host) => {
                door.port = Some(number as u16);
                door.host = host.map(str::to_owned);
            }
            _ => return Err(Wrong::new(format!("Invalid port value ({number})."))),
        }
        self.doors.push(door);
        self.current = Some(self.doors.len() - 1);
        Ok(())
    }

    fn default_door(&mut self) -> &mut Door {
        let at = *self.default_door.get_or_insert_with(|| {
            self.doors.push(Door::default());
            self.doors.len() - 1
        });
        self.current.get_or_insert(at);
        &mut self.doors[at]
    }

    /// The listener that an option is for: the last one of this file, or the default one.
    fn door(&mut self) -> &mut Door {
        match self.current {
            Some(at) => &mut self.doors[at],
            None => self.default_door(),
        }
    }

    fn security(&mut self, line: &Line<'_>) -> Result<&mut Security, Wrong> {
        self.security_said = true;
        match (self.per_listener, self.current) {
            (false, _) => Ok(&mut self.security),
            (true, Some(at)) => Ok(&mut self.doors[at].security),
            (true, None) => Err(Wrong::new(format!(
                "The '{}' option needs a listener before it: per_listener_settings is true.",
                line.name
            ))),
        }
    }

    fn log_dest(&mut self, line: &Line<'_>) -> Result<(), Wrong> {
        let (word, rest) = line.value.split_once([' ', '\t']).unwrap_or((line.value, ""));
        let destination = match word {
            "none" => {
                self.destinations = vec![LogDestination::Nowhere];
                return Ok(());
            }
            "stdout" => LogDestination::Stdout,
            "stderr" => LogDestination::Stderr,
            "syslog" => LogDestination::Syslog,
            "file" if !rest.trim().is_empty() => LogDestination::File(PathBuf::from(rest.trim())),
            "file" => return Err(Wrong::new("Empty log_dest file value in configuration.")),
            "topic" => {
                self.notices
                    .push("log_dest topic has no effect here: the other destinations have the lines".to_owned());
                return Ok(());
            }
            "dlt" | "android" => {
                self.notices.push(format!("log_dest {word} has no effect here: there is no such log"));
                return Ok(());
            }
            other => return Err(Wrong::new(format!("Invalid log_dest value ({other})."))),
        };
        if !self.destinations.contains(&destination) {
            self.destinations.push(destination);
        }
        Ok(())
    }

    fn log_type(&mut self, value: &str) -> Result<(), Wrong> {
        let known = [
            "debug",
            "error",
            "warning",
            "notice",
            "information",
            "subscribe",
            "unsubscribe",
            "websockets",
            "internal",
            "none",
            "all",
        ];
        let word = value.split_whitespace().next().unwrap_or_default();
        if !known.contains(&word) {
            return Err(Wrong::new(format!("Invalid log_type value ({word}).")));
        }
        self.types.push(word.to_owned());
        Ok(())
    }

    /// What it comes to.
    pub(super) fn finish(mut self, command: &CommandLine) -> Result<Read, Wrong> {
        for port in &command.ports {
            self.doors.push(Door { port: Some(*port), ..Door::default() });
        }
        let local_only = self.doors.len() == command.ports.len();
        if local_only && self.doors.is_empty() {
            self.doors.push(Door { port: Some(1883), ..Door::default() });
        }
        let file = command.file.clone().unwrap_or_else(|| PathBuf::from("mosquitto.conf"));
        let mut listeners = Vec::new();
        let shared = self.shared()?;
        for door in &self.doors {
            listeners.push(self.opened(door, local_only)?);
        }
        for (at, listener) in listeners.iter().enumerate() {
            if listeners[..at].iter().any(|other: &Listener| other.address == listener.address) {
                return Err(Wrong::new(format!("Two listeners are on {}: one is enough.", listener.address)));
            }
        }
        let data = match (self.persistence, &self.location) {
            (true, Some(location)) => location.join("lockgate"),
            (true, None) => PathBuf::from("lockgate"),
            (false, _) => command.scratch.clone(),
        };
        let settings = Settings {
            pki: data.join("pki"),
            file,
            name: "mosquitto".to_owned(),
            user: Some(self.user.clone().unwrap_or_else(|| "mosquitto".to_owned())).filter(|user| user != "root"),
            data,
            passwords: shared.passwords.clone(),
            acl: shared.acl.clone(),
            identities: None,
            self_renew: false,
            at_expiry: AtExpiry::Keep,
            shards: 1,
            durability: if self.persistence { Durability::Fsync } else { Durability::Off },
            commit_delay: Duration::ZERO,
            listeners,
            admission: Admission { connections_max: self.connections_max.unwrap_or(100_000), ..Admission::default() },
            limits: self.limits(),
            log: self.log(command),
            acme: None,
            enrolment: None,
            metrics: None,
            sys_interval: Some(self.sys_interval.unwrap_or(10)).filter(|secs| *secs > 0).map(Duration::from_secs),
            pid_file: self.pid_file.clone(),
            stands_in: true,
        };
        Ok(Read { settings, notices: self.notices, local_only })
    }

    /// Passwords and ACL: of all listeners alike.
    fn shared(&self) -> Result<Security, Wrong> {
        if !self.per_listener {
            return Ok(self.security.clone());
        }
        let files = |door: &Door| (door.security.passwords.clone(), door.security.acl.clone());
        let mut said: Vec<_> = self.doors.iter().map(files).filter(|files| *files != (None, None)).collect();
        said.dedup();
        if said.len() > 1 {
            return Err(Wrong::new(
                "password_file and acl_file of listeners differ: one of each is for all listeners here; put the names of all in it.",
            ));
        }
        Ok(self
            .doors
            .iter()
            .find(|door| files(door) != (None, None))
            .map(|door| door.security.clone())
            .unwrap_or_default())
    }

    fn limits(&self) -> Limits {
        let first = |of: fn(&Door) -> Option<u16>| self.doors.iter().find_map(of);
        Limits {
            topic_alias_max: first(|door| door.topic_alias_max).unwrap_or(10),
            client_topic_alias_max: first(|door| door.topic_alias_max_broker).unwrap_or(10),
            receive_maximum: self.limits.inflight_max,
            qos_max: self.doors.iter().filter_map(|door| door.qos_max).min().unwrap_or(QoS::ExactlyOnce),
            ..self.limits.clone()
        }
    }

    fn log(&self, command: &CommandLine) -> Log {
        let types: Vec<&str> = self.types.iter().map(String::as_str).collect();
        let has = |word: &str| types.contains(&word) || types.contains(&"all");
        let level = match () {
            () if command.quiet || types.contains(&"none") => "off",
            () if command.verbose || has("debug") => "debug",
            () if types.is_empty() || has("notice") || has("information") => "info",
            () if has("warning") => "warn",
            () if has("error") => "error",
            () => "info",
        };
        let destinations = match self.destinations.is_empty() {
            true => vec![LogDestination::Stderr],
            false => self.destinations.clone(),
        };
        Log {
            level: level.to_owned(),
            format: LogFormat::Human,
            destinations,
            style: LogStyle::Mosquitto {
                timestamp: self.timestamp.unwrap_or(true),
                format: self.timestamp_format.clone(),
                connections: self.connection_messages.unwrap_or(true),
            },
        }
    }

    fn opened(&self, door: &Door, local_only: bool) -> Result<Listener, Wrong> {
        let security = if self.per_listener { &door.security } else { &self.security };
        let address = match (&door.unix, door.port.unwrap_or(1883)) {
            (Some(path), _) => ListenerAddress::Unix(path.clone()),
            (None, port) if local_only => ListenerAddress::Loopback(port),
            (None, port) => place(door, port)?,
        };
        let transport = self.transport(door)?;
        if door.websockets && door.unix.is_some() {
            return Err(Wrong::new("protocol websockets goes with a port, not with a Unix socket."));
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
        Ok(Listener {
            address,
            transport: if door.unix.is_some() { Transport::Unix } else { transport },
            websocket: door.websockets.then(|| WebSocket {
                origins: if door.origins.is_empty() { vec!["*".to_owned()] } else { door.origins.clone() },
            }),
            rules,
            connections_max: door.connections_max.unwrap_or(10_000_000),
            proxied: door.proxied,
            interface: door.interface.clone(),
            versions: door.versions.unwrap_or([true; 3]),
            client_ids: ClientIds {
                from_user_name: door.id_from_user_name,
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

    fn transport(&self, door: &Door) -> Result<Transport, Wrong> {
        let (certificate, key) = match (&door.certificate, &door.key) {
            (None, None) if door.require_certificate || door.by_identity || door.by_subject => {
                return Err(Wrong::new("require_certificate and use_identity_as_username need certfile and keyfile."));
            }
            (None, None) => return Ok(Transport::Tcp),
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
            _ => return Err(Wrong::new("Both certfile and keyfile must be provided to enable a TLS listener.")),
        };
        let by_certificate = door.by_identity || door.by_subject;
        let client_certs = match (&door.ca, door.require_certificate) {
            (None, true) => {
                return Err(Wrong::new("require_certificate needs cafile: who signs the clients' certificates."));
            }
            (Some(_), true) => ClientCerts::Required,
            (Some(_), false) if by_certificate => ClientCerts::Optional,
            _ => ClientCerts::Off,
        };
        Ok(Transport::Tls(TlsFiles {
            client_ca: door.ca.clone().unwrap_or_else(|| certificate.clone()),
            certificate,
            key,
            client_crl: door.crl.clone(),
            server_ca: None,
            client_certs,
            min_version: door.tls_version,
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
