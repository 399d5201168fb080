//! What the options say, one after the other, and what it comes to.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::door::{Door, EXPLICIT, Security};
use super::options::{Fate, fate};
use super::plugins::{Loaded, Named, Plugin};
use super::value::{bounded, unlimited};
use super::{Line, Wrong};
use crate::broker::Limits;
use crate::config::LogDestination;

pub(super) struct Draft {
    /// What is refused is left out.
    pub(super) lenient: bool,
    /// The plugin whose options come.
    pub(super) plugin: Option<Named>,
    pub(super) plugins: Vec<Plugin>,
    /// Of those, what `plugin` named.
    pub(super) everybodys: Vec<Plugin>,
    pub(super) loaded: Vec<Loaded>,
    pub(super) control_api: bool,
    /// Why something was, so far.
    pub(super) refused: Vec<&'static str>,
    pub(super) doors: Vec<Door>,
    /// Which listener the next option is for; each file begins without.
    pub(super) current: Option<usize>,
    pub(super) before_include: Vec<Option<usize>>,
    pub(super) default_door: Option<usize>,
    pub(super) per_listener: bool,
    pub(super) security: Security,
    pub(super) security_said: bool,
    pub(super) limits: Limits,
    pub(super) connections_max: Option<usize>,
    pub(super) user: Option<String>,
    pub(super) pid_file: Option<PathBuf>,
    pub(super) sys_interval: Option<u64>,
    pub(super) persistence: bool,
    pub(super) location: Option<PathBuf>,
    pub(super) said: BTreeSet<String>,
    pub(super) destinations: Vec<LogDestination>,
    pub(super) types: Vec<String>,
    pub(super) timestamp: Option<bool>,
    pub(super) timestamp_format: Option<String>,
    pub(super) facility: Option<u8>,
    /// What every client id has to begin with.
    pub(super) id_prefix: Option<String>,
    pub(super) connection_messages: Option<bool>,
    pub(super) notices: Vec<String>,
}

/// What Mosquitto 2.1 limits where its configuration says nothing.
pub fn default_limits() -> Limits {
    Limits {
        packet_size_max: 2_000_000,
        inflight_max: 20,
        queued_messages_max: 1000,
        queued_bytes_max: 1 << 40,
        inflight_bytes_max: 1 << 40,
        retained_messages_max: 1_000_000_000,
        retained_bytes_max: 1 << 40,
        sessions_max: 100_000_000,
        subscriptions_max: 1_000_000_000,
        as_mosquitto: true,
        topic_levels_max: 201,
        ..Limits::default()
    }
}

impl Default for Draft {
    fn default() -> Draft {
        let limits = default_limits();
        Draft {
            lenient: false,
            plugin: None,
            plugins: Vec::new(),
            everybodys: Vec::new(),
            loaded: Vec::new(),
            control_api: false,
            refused: Vec::new(),
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
            facility: None,
            id_prefix: None,
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
        if let Some(done) = self.plugin_line(line) {
            return done;
        }
        match fate {
            Fate::Same => self.apply(line),
            Fate::Idle(why) => {
                self.notices.push(format!("{name} has no effect here: {why}"));
                Ok(())
            }
            Fate::Refused(instead) | Fate::Partly(instead) | Fate::Later(instead) => {
                // What says that it is off needs nothing.
                let boolean = ["disable_client_cert_date_checks", "proxy_protocol_v2_require_tls"];
                let off = boolean.contains(&name) && matches!(line.value, "false" | "0");
                if off {
                    return Ok(());
                }
                let what = format!("{name} is not done here: {instead}.");
                // Without what keeps somebody out, a door would stand open.
                let guards = ["psk_hint", "psk_file", "proxy_protocol_v2_require_tls"].contains(&name)
                    || matches!(fate, Fate::Partly(_));
                match self.lenient && !guards {
                    false => Err(Wrong::new(what)),
                    true if self.refused.contains(&instead) => Ok(()),
                    true => {
                        // Once for all options of a bridge, say.
                        self.refused.push(instead);
                        self.notices.push(what);
                        Ok(())
                    }
                }
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
            "queue_qos0_messages" => self.limits.queues_qos_0 = line.boolean()?,
            "upgrade_outgoing_qos" => self.limits.upgrades_qos = line.boolean()?,
            "enable_control_api" => self.control_api = line.boolean()?,
            "check_retain_source" => self.limits.checks_retained_source = line.boolean()?,
            "max_inflight_bytes" => {
                self.limits.inflight_bytes_max = bounded(line.number(0..=u64::MAX >> 1)?, 1 << 40) as usize
            }
            "clientid_prefixes" => self.id_prefix = Some(line.text()?),
            "log_facility" => match line.number(0..=7) {
                Ok(local) => self.facility = Some(local as u8),
                Err(_) => return Err(Wrong::new(format!("Invalid log_facility value ({}).", line.word()))),
            },
            "connection_messages" => self.connection_messages = Some(line.boolean()?),
            "persistence" | "retained_persistence" => self.persistence = line.boolean()?,
            "persistence_location" => self.location = Some(line.path()?),
            "log_dest" => self.log_dest(line)?,
            "log_type" => self.log_type(value)?,
            "log_timestamp" => self.timestamp = Some(line.boolean()?),
            "log_timestamp_format" => {
                let format = line.text()?;
                let some_time = jiff::Timestamp::UNIX_EPOCH.to_zoned_datetime(jiff::tz::TimeZone::UTC);
                jiff::fmt::strtime::format(&format, &some_time)
                    .map_err(|error| Wrong::new(format!("Invalid log_timestamp_format value ({format}): {error}.")))?;
                self.timestamp_format = Some(format);
            }
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
            name if EXPLICIT.contains(&name) && self.current.is_none() => {
                return Err(Wrong::new(format!("The '{name}' option needs a listener before it.")));
            }
            _ => self.door().apply(line)?,
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

    pub(super) fn security(&mut self, line: &Line<'_>) -> Result<&mut Security, Wrong> {
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
            "topic" => LogDestination::Topic,
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
}
