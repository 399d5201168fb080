//! What the options come to.

use std::path::PathBuf;
use std::time::Duration;

use super::apply::Draft;
use super::door::{Common, Door, Protocol};
use super::{CommandLine, Read, Wrong};
use crate::broker::Limits;
use crate::config::settings::set_realms;
use crate::config::{
    Admission, AtExpiry, Faults, Listener, Log, LogDestination, LogFormat, LogStyle, SUBSCRIBE_LINES, Settings,
    UNSUBSCRIBE_LINES,
};
use crate::store::Durability;
use crate::types::QoS;

impl Draft {
    /// What it comes to.
    pub(super) fn finish(mut self, command: &CommandLine) -> Result<Read, Wrong> {
        // Options that say what holds anyway make no listener.
        if let Some(at) = self.default_door.filter(|at| self.doors[*at] == Door::default()) {
            self.doors.remove(at);
        }
        let local_only = self.doors.is_empty();
        if local_only {
            let ports = if command.ports.is_empty() { &[1883][..] } else { &command.ports };
            self.doors.extend(ports.iter().map(|port| Door { port: Some(*port), ..Door::default() }));
        } else if !command.ports.is_empty() {
            self.notices.push("-p has no effect beside listeners of the configuration file".to_owned());
        }
        let file = command.file.clone().unwrap_or_else(|| PathBuf::from("mosquitto.conf"));
        for prefix in self.doors.iter().map(|door| &door.mount_point).filter(|prefix| !prefix.is_empty()) {
            if !prefix.ends_with('/') {
                self.notices.push(format!("mount_point {prefix} does not end with a slash: topic t becomes {prefix}t"));
            }
        }
        let common = Common {
            security: &self.security,
            per_listener: self.per_listener && !local_only,
            local_only,
            id_prefix: self.id_prefix.as_deref(),
            key_log: command.key_log.as_ref(),
            loaded: &self.loaded,
        };
        let mut listeners = self.doors.iter().map(|door| door.opened(&common)).collect::<Result<Vec<_>, _>>()?;
        set_realms(&mut listeners, (&self.security.passwords, &self.security.acl));
        for (at, loaded) in self.loaded.iter().enumerate() {
            let (global, name) = (loaded.plugin.is_global(), &loaded.name);
            if global {
                self.notices.push(format!("the plugin {name} is for all listeners: what it does is the broker's"));
            } else if !self.doors.iter().any(|door| door.uses.contains(&at)) {
                self.notices.push(format!("no listener uses the plugin {name}"));
            }
        }
        for door in self.doors.iter().filter(|door| door.protocol == Protocol::Mqtt && door.http_dir.is_some()) {
            let port = door.port.unwrap_or(1883);
            self.notices.push(format!("http_dir has no effect on port {port}: its protocol is mqtt"));
        }
        for (at, listener) in listeners.iter().enumerate() {
            if listeners[..at].iter().any(|other: &Listener| other.address == listener.address) {
                return Err(Wrong::new(format!("Two listeners are on {}: one is enough.", listener.address)));
            }
        }
        let data = match (self.persistence, command.location.as_ref().or(self.location.as_ref())) {
            (true, Some(location)) => location.join("lockgate"),
            (true, None) => PathBuf::from("lockgate"),
            (false, _) => command.scratch.clone(),
        };
        let kept =
            data.parent().map(|folder| folder.join("mosquitto.db")).filter(|kept| self.persistence && kept.exists());
        if let Some(kept) = kept {
            self.notices.push(format!(
                "{} is not read: sessions and retained messages begin anew, in {}",
                kept.display(),
                data.display()
            ));
        }
        let settings = Settings {
            pki: data.join("pki"),
            file,
            name: "mosquitto".to_owned(),
            user: Some(self.user.clone().unwrap_or_else(|| "mosquitto".to_owned())).filter(|user| user != "root"),
            data,
            passwords: self.security.passwords.clone(),
            acl: self.security.acl.clone(),
            identities: None,
            rehash: false,
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
            faults: Faults::default(),
            control_api: self.control_api,
            plugins: self.plugins.iter().map(|plugin| plugin.name()).collect(),
        };
        Ok(Read { settings, notices: self.notices, local_only })
    }

    fn limits(&self) -> Limits {
        Limits {
            // Each listener has its own.
            topic_alias_max: u16::MAX,
            client_topic_alias_max: u16::MAX,
            qos_max: QoS::ExactlyOnce,
            receive_maximum: self.limits.inflight_max,
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
            // Subscriptions alone.
            () => "off",
        };
        let mut level = level.to_owned();
        for (word, target) in [("subscribe", SUBSCRIBE_LINES), ("unsubscribe", UNSUBSCRIBE_LINES)] {
            let shown = !command.quiet && !types.contains(&"none") && (command.verbose || has(word));
            level.push_str(&format!(",{target}={}", if shown { "debug" } else { "off" }));
        }
        let destinations = match self.destinations.is_empty() {
            true => vec![LogDestination::Stderr],
            false => self.destinations.clone(),
        };
        Log {
            level,
            format: LogFormat::Human,
            destinations,
            facility: self.facility,
            style: LogStyle::Mosquitto {
                timestamp: self.timestamp.unwrap_or(true),
                format: self.timestamp_format.clone(),
                connections: self.connection_messages.unwrap_or(true),
            },
        }
    }
}
