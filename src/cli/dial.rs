//! How `pub`, `sub` and `doctor` are told which broker to dial, and as whom.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{ArgAction, Args};
use zeroize::Zeroizing;

use super::environment::Environment;
use super::site::{self, Files};
use super::{Failure, SiteArguments};
use crate::client::{ConnectError, Connection, Incoming, Trust, Versions, Way, WayError, because, configuration};
use crate::codec::{Connect, ConnectProperties, Disconnect, Packet, PropertyBlock, Version, Will, WillPropertiesOf};
use crate::types::{Identity, QoS, ReasonCode, Topic};

/// How long a broker may take for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Exit codes of `pub` and `sub`.
pub(super) const REFUSED: u8 = 3;
pub(super) const TIMED_OUT: u8 = 27;

/// Which broker, and who comes to it.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct Dial {
    /// Come as this identity of the site: with its bundle in pki/clients/NAME
    #[arg(long = "as", value_name = "NAME", conflicts_with = "env_file")]
    pub(super) identity: Option<Identity>,
    /// Come with the variables of this file, as `lockgate client env` writes it [default: those of the environment, MQTT_HOST and so on, where no address is named]
    #[arg(long = "env", value_name = "FILE")]
    pub(super) env_file: Option<PathBuf>,
    /// The broker's name or address [default: localhost]
    #[arg(short = 'h', long, value_name = "HOST")]
    pub(super) host: Option<String>,
    /// Its port [default: 8883 with TLS, 1883 without]
    #[arg(short = 'p', long, value_name = "PORT")]
    pub(super) port: Option<u16>,
    /// A Unix socket in their place
    #[arg(long, value_name = "PATH", conflicts_with_all = ["host", "port"])]
    pub(super) unix: Option<PathBuf>,
    /// The user name
    #[arg(short = 'u', long, visible_alias = "user", value_name = "NAME")]
    pub(super) username: Option<String>,
    /// The password (others on this machine see it: --password-file is better)
    #[arg(short = 'P', long, value_name = "PASSWORD", conflicts_with = "password_file")]
    pub(super) pw: Option<String>,
    /// The password, in this file's first line
    #[arg(long, value_name = "FILE")]
    pub(super) password_file: Option<PathBuf>,
    /// TLS: the CA that the broker's certificate is of
    #[arg(long, visible_alias = "ca", value_name = "FILE")]
    pub(super) cafile: Option<PathBuf>,
    /// TLS: by the CAs that this system trusts
    #[arg(long, conflicts_with = "cafile")]
    pub(super) tls_use_os_certs: bool,
    /// The client's certificate
    #[arg(long, value_name = "FILE", requires = "key")]
    pub(super) cert: Option<PathBuf>,
    /// The client's key
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub(super) key: Option<PathBuf>,
    /// Let the broker's certificate have any name
    #[arg(long)]
    pub(super) insecure: bool,
    /// Offer this version of TLS alone
    #[arg(long, value_name = "VERSION", value_parser = PossibleValuesParser::new(["tlsv1.2", "tlsv1.3"]))]
    pub(super) tls_version: Option<String>,
    #[command(flatten)]
    pub(super) site: SiteArguments,
}

/// What a session is to be.
#[derive(Args, Clone, Debug)]
pub(super) struct Session {
    /// The version of MQTT
    #[arg(short = 'V', long, value_name = "VERSION", default_value = "5", value_parser = PossibleValuesParser::new(["5", "mqttv5", "311", "mqttv311", "31", "mqttv31"]))]
    protocol_version: String,
    /// The client id [default: made up]
    #[arg(short = 'i', long, value_name = "ID")]
    id: Option<String>,
    /// Seconds between signs of life
    #[arg(short = 'k', long, value_name = "SECONDS", default_value_t = 60)]
    pub(super) keepalive: u16,
    /// Take up the session of this client id, and leave it behind (with -i)
    #[arg(short = 'c', long, requires = "id")]
    disable_clean_session: bool,
    /// How long the session outlives the connection, seconds (MQTT 5) [default: 0; with -c: for ever]
    #[arg(short = 'x', long, value_name = "SECONDS")]
    session_expiry_interval: Option<u32>,
    /// The will's topic
    #[arg(long, value_name = "TOPIC")]
    will_topic: Option<String>,
    /// The will's payload
    #[arg(long, value_name = "TEXT", requires = "will_topic")]
    will_payload: Option<String>,
    /// The will's QoS
    #[arg(long, value_name = "QOS", default_value_t = 0, requires = "will_topic", value_parser = clap::value_parser!(u8).range(0..=2))]
    will_qos: u8,
    /// Retain the will
    #[arg(long, requires = "will_topic")]
    will_retain: bool,
    /// A property (MQTT 5): -D publish|connect|subscribe|will NAME VALUE [VALUE], by Mosquitto's names (repeatable)
    #[arg(short = 'D', long = "property", value_names = ["PACKET", "NAME", "VALUE"], num_args = 3..=4, action = ArgAction::Append)]
    properties: Vec<String>,
}

/// What is known of a broker before it is dialled.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) unix: Option<PathBuf>,
    /// `None`: no TLS.
    pub(super) trust: Option<Trust>,
    pub(super) user: Option<String>,
    pub(super) password: Option<Zeroizing<String>>,
    /// Where the password is from, or what has none.
    pub(super) source: String,
    /// The command that looks into it as the same client.
    pub(super) doctor: String,
}

impl Dial {
    /// What the command line says, above what a bundle or the environment does.
    pub(super) fn target(&self) -> Result<Target, Failure> {
        let (source, text, folder) = self.variables()?;
        let value = |name: &str| Environment::value(&text, name).filter(|value| !value.is_empty()).map(str::to_owned);
        let file = |name: &str| value(name).map(|path| folder.join(path));
        let password = match &self.password_file {
            Some(file) => Some(first_line(file)?),
            None => self.pw.clone().or_else(|| value("MQTT_PASSWORD")).map(Zeroizing::new),
        };
        let trust = self.trust(&source, &value, &file)?;
        let port = match value("MQTT_PORT").map(|port| port.parse::<u16>()) {
            Some(Err(_)) => return Err(Failure::configuration(format!("{source}: MQTT_PORT is no port"))),
            Some(Ok(port)) => Some(port),
            None => None,
        };
        let user = self.username.clone().or_else(|| value("MQTT_USER"));
        fits("the user name", user.as_deref().unwrap_or_default())?;
        fits("the password", password.as_ref().map_or("", |password| password))?;
        Ok(Target {
            host: self.host.clone().or_else(|| value("MQTT_HOST")).unwrap_or_else(|| "localhost".to_owned()),
            port: self.port.or(port).unwrap_or(if trust.is_some() { 8883 } else { 1883 }),
            unix: self.unix.clone(),
            trust: trust.filter(|_| self.unix.is_none()),
            user,
            source: match (&password, &self.pw, &self.password_file) {
                (Some(_), Some(_), _) => "the command line".to_owned(),
                (Some(_), None, Some(file)) => file.display().to_string(),
                _ => source,
            },
            password,
            doctor: self.doctor(),
        })
    }

    /// As whoever comes so; a password is not repeated.
    fn doctor(&self) -> String {
        let mut line = "lockgate doctor".to_owned();
        let mut add = |flag: &str, value: Option<String>| {
            if let Some(value) = value {
                let value = if value.contains(' ') { format!("'{value}'") } else { value };
                line.push_str(&format!(" {flag} {value}"));
            }
        };
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        add("--config", path(&self.site.config));
        add("--dir", path(&self.site.dir));
        add("--as", self.identity.as_ref().map(ToString::to_string));
        add("--env", path(&self.env_file));
        add("-h", self.host.clone());
        add("-p", self.port.map(|port| port.to_string()));
        add("--unix", path(&self.unix));
        add("-u", self.username.clone());
        add("-P", self.pw.as_ref().map(|_| "PASSWORD".to_owned()));
        add("--password-file", path(&self.password_file));
        add("--cafile", path(&self.cafile));
        add("--cert", path(&self.cert));
        add("--key", path(&self.key));
        add("--tls-version", self.tls_version.clone());
        for (flag, is_given) in [("--tls-use-os-certs", self.tls_use_os_certs), ("--insecure", self.insecure)] {
            if is_given {
                line.push_str(&format!(" {flag}"));
            }
        }
        line
    }

    /// Where from, in the words of `mqtt.env`, and the folder that relative paths in it are from.
    fn variables(&self) -> Result<(String, String, PathBuf), Failure> {
        if let Some(identity) = &self.identity {
            let settings = site::load(&self.site)?;
            let folder = Files::of(&settings).bundles.join(identity.as_str());
            let file = folder.join("mqtt.env");
            let text = site::read_or_empty(&file)?;
            if text.is_empty() {
                return Err(Failure::configuration(format!(
                    "there is no bundle of {identity} here ({}): `lockgate client list` shows who there is; what was handed over is named by --env FILE",
                    file.display()
                )));
            }
            return Ok((file.display().to_string(), text, folder));
        }
        if let Some(file) = &self.env_file {
            let text = std::fs::read_to_string(file)
                .map_err(|error| Failure::configuration(format!("cannot read {}: {error}", file.display())))?;
            if Environment::value(&text, "MQTT_HOST").is_none() {
                let what = format!("{}: there is no MQTT_HOST in it: --env takes an mqtt.env", file.display());
                return Err(Failure::configuration(what));
            }
            let folder = file.parent().unwrap_or(Path::new("")).to_owned();
            return Ok((file.display().to_string(), text, folder));
        }
        if self.host.is_some() || self.port.is_some() || self.unix.is_some() {
            // Whoever names a broker by hand does not mean to send it another one's password.
            return Ok(("the command line".to_owned(), String::new(), PathBuf::new()));
        }
        let own =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        let lines = own.filter(|(name, _)| name.starts_with("MQTT_")).map(|(name, value)| format!("{name}={value}\n"));
        Ok(("the environment".to_owned(), lines.collect(), PathBuf::new()))
    }

    /// `None` where nothing asks for TLS.
    fn trust(
        &self,
        source: &str,
        value: &impl Fn(&str) -> Option<String>,
        file: &impl Fn(&str) -> Option<PathBuf>,
    ) -> Result<Option<Trust>, Failure> {
        let flag = |name: &str| match value(name).map(|text| text.to_ascii_lowercase()).as_deref() {
            None => Ok(None),
            Some("true" | "1" | "yes" | "on") => Ok(Some(true)),
            Some("false" | "0" | "no" | "off") => Ok(Some(false)),
            Some(other) => {
                Err(Failure::configuration(format!("{source}: {name} is {other:?}; it is either true or false")))
            }
        };
        let (given, any_name) = (flag("MQTT_USE_TLS")?, flag("MQTT_TLS_INSECURE")?.unwrap_or(false));
        let (certificate, key) = (file("MQTT_CERTFILE"), file("MQTT_KEYFILE"));
        if certificate.is_some() != key.is_some() {
            return Err(Failure::configuration(format!(
                "{source}: MQTT_CERTFILE and MQTT_KEYFILE go together, and one is missing"
            )));
        }
        let asked = self.cafile.is_some()
            || self.tls_use_os_certs
            || self.cert.is_some()
            || self.insecure
            || self.tls_version.is_some()
            || (self.port == Some(8883) && self.unix.is_none());
        let usual = self.unix.is_none()
            && (file("MQTT_CA_CERTS").is_some()
                || certificate.is_some()
                || (self.port.is_none() && value("MQTT_PORT").is_some_and(|port| port == "8883")));
        let wanted = asked || given.unwrap_or(usual);
        Ok(wanted.then(|| Trust {
            ca: self.cafile.clone().or_else(|| file("MQTT_CA_CERTS")).filter(|_| !self.tls_use_os_certs),
            identity: self.cert.clone().zip(self.key.clone()).or_else(|| certificate.zip(key)),
            any_name: self.insecure || any_name,
            versions: match self.tls_version.as_deref() {
                Some("tlsv1.2") => Versions::Only12,
                Some(_) => Versions::Only13,
                None => Versions::All,
            },
        }))
    }
}

/// Texts and binary data are 65,535 bytes at most (sections 1.5.4 and 1.5.6).
pub(super) fn fits(what: &str, text: impl AsRef<[u8]>) -> Result<(), Failure> {
    let size = text.as_ref().len();
    match size > usize::from(u16::MAX) {
        true => Err(Failure::configuration(format!("{what} has {size} bytes; MQTT has room for 65535"))),
        false => Ok(()),
    }
}

/// How long a client that says nothing may wait before it sends PINGREQ: half of what the broker bears, in CONNACK or
/// else as asked for [MQTT-3.2.2-21]. A day where there is no limit.
pub(super) fn quiet(welcome: &Incoming, keep_alive: u16) -> Duration {
    let said = match welcome.packet() {
        Ok(Packet::ConnAck(connack)) => connack.server_keep_alive,
        _ => None,
    };
    match said.unwrap_or(keep_alive) {
        0 => Duration::from_secs(86_400),
        secs => Duration::from_millis(u64::from(secs) * 500),
    }
}

fn first_line(file: &Path) -> Result<Zeroizing<String>, Failure> {
    let text = std::fs::read_to_string(file)
        .map(Zeroizing::new)
        .map_err(|error| Failure::configuration(format!("cannot read {}: {error}", file.display())))?;
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
}

impl Target {
    /// Where name and password are from, or that there is none.
    pub(super) fn credentials(&self) -> String {
        match self.password {
            Some(_) => format!("the password is from {}", self.source),
            None => format!(
                "no password was given, and none is in {}: -P PASSWORD or --password-file FILE gives one",
                self.source
            ),
        }
    }

    pub(super) fn way(&self) -> Result<Way, Failure> {
        if let Some(path) = &self.unix {
            return Ok(Way::Unix(path.clone()));
        }
        let tls = self.trust.as_ref().map(configuration).transpose().map_err(Failure::configuration)?;
        Ok(Way::Network { host: self.host.clone(), port: self.port, tls: tls.map(Into::into) })
    }
}

/// What goes into a packet's properties, by Mosquitto's names.
#[derive(Clone, Debug, Default)]
pub(super) struct Properties {
    pub(super) publish: PropertyBlock,
    pub(super) subscribe: PropertyBlock,
    connect: PropertyBlock,
    will: PropertyBlock,
    receive_maximum: Option<u16>,
}

impl Session {
    pub(super) fn version(&self) -> Version {
        match self.protocol_version.trim_start_matches("mqttv") {
            "311" => Version::V311,
            "31" => Version::V31,
            _ => Version::V5,
        }
    }

    pub(super) fn properties(&self) -> Result<Properties, Failure> {
        let mut made = Properties::default();
        let mut words = self.properties.iter().map(String::as_str).peekable();
        while let Some(packet) = words.next() {
            let (Some(name), Some(value)) = (words.next(), words.next()) else {
                return Err(bad_property(packet, "it has no value"));
            };
            let block = match packet.to_ascii_lowercase().as_str() {
                "publish" => &mut made.publish,
                "subscribe" => &mut made.subscribe,
                "connect" => &mut made.connect,
                "will" => &mut made.will,
                other => return Err(bad_property(other, "packets are publish, subscribe, connect and will")),
            };
            fits(&format!("-D {name}"), value)?;
            let packet = packet.to_ascii_lowercase();
            let goes_with = match name {
                "payload-format-indicator"
                | "message-expiry-interval"
                | "content-type"
                | "response-topic"
                | "correlation-data" => &["publish", "will"][..],
                "will-delay-interval" => &["will"],
                "receive-maximum" => &["connect"],
                "session-expiry-interval" => return Err(bad_property(name, "that is -x SECONDS here")),
                _ => &["publish", "subscribe", "connect", "will"],
            };
            if !goes_with.contains(&packet.as_str()) {
                return Err(bad_property(name, &format!("it goes with {}", goes_with.join(" and "))));
            }
            let number = || value.parse::<u32>().map_err(|_| bad_property(name, "its value is a number"));
            match name {
                "user-property" => {
                    let Some(second) = words.next() else {
                        return Err(bad_property(name, "it has a name and a value"));
                    };
                    fits("-D user-property", second)?;
                    block.user_property(value, second);
                }
                "payload-format-indicator" if value == "1" => block.payload_is_utf8(),
                "payload-format-indicator" if value == "0" => {}
                "payload-format-indicator" => return Err(bad_property(name, "it is 0 or 1")),
                "message-expiry-interval" => block.message_expiry_interval(number()?),
                "will-delay-interval" => block.will_delay_interval(number()?),
                "content-type" => block.content_type(value),
                "response-topic" => block.response_topic(value),
                "correlation-data" => block.correlation_data(value.as_bytes()),
                "receive-maximum" => {
                    let count = u16::try_from(number()?).ok().filter(|count| *count > 0);
                    made.receive_maximum = Some(count.ok_or_else(|| bad_property(name, "it is 1 to 65535"))?);
                }
                other => return Err(bad_property(other, "it is not known here")),
            }
        }
        if !self.properties.is_empty() && self.version() != Version::V5 {
            return Err(Failure::configuration("-D needs MQTT 5 (-V 5): earlier versions have no properties"));
        }
        Ok(made)
    }

    fn will(&self, properties: &Properties) -> Result<Option<(String, WillPropertiesOf)>, Failure> {
        let Some(topic) = &self.will_topic else { return Ok(None) };
        Topic::parse(topic)
            .map_err(|error| Failure::configuration(format!("--will-topic {topic:?} is no topic: {error}")))?;
        let made = properties.will.will().map_err(|error| Failure::configuration(format!("-D will: {error}")))?;
        Ok(Some((topic.clone(), made)))
    }

    /// Dials, says CONNECT, and takes the broker's word.
    pub(super) async fn open(
        &self,
        target: &Target,
        properties: &Properties,
    ) -> Result<(Connection, Incoming), Failure> {
        let will = self.will(properties)?;
        if self.session_expiry_interval.is_some() && self.version() != Version::V5 {
            return Err(Failure::configuration("-x needs MQTT 5 (-V 5): earlier versions keep a session with -c"));
        }
        fits("the client id", self.id.as_deref().unwrap_or_default())?;
        fits("the will's payload", self.will_payload.as_deref().unwrap_or_default())?;
        let stream = target.way()?.open(PATIENCE).await.map_err(|error| explain_way(target, &error))?;
        let id = match &self.id {
            Some(id) => id.clone(),
            None if self.version() == Version::V31 => made_up_id(),
            None => String::new(),
        };
        let payload = self.will_payload.clone().unwrap_or_default();
        let expiry = self.session_expiry_interval.or(self.disable_clean_session.then_some(u32::MAX));
        let connect = Connect {
            version: self.version(),
            clean_start: !self.disable_clean_session,
            keep_alive: self.keepalive,
            properties: ConnectProperties {
                session_expiry_interval: expiry,
                receive_maximum: properties.receive_maximum.unwrap_or(u16::MAX),
                user_properties: properties.connect.user_properties(),
                ..ConnectProperties::default()
            },
            client_id: &id,
            will: will.as_ref().map(|(topic, made)| Will {
                qos: QoS::from_bits(self.will_qos).expect("clap takes no other"),
                retain: self.will_retain,
                properties: made.get(),
                topic,
                payload: payload.as_bytes(),
            }),
            user_name: target.user.as_deref(),
            password: target.password.as_ref().map(|password| password.as_bytes()),
        };
        Connection::connect(stream, &connect, PATIENCE).await.map_err(|error| explain_connect(target, &error))
    }
}

fn bad_property(name: &str, what: &str) -> Failure {
    Failure::configuration(format!("-D {name}: {what}"))
}

/// A DISCONNECT of the broker's: it refuses what was sent, or just ends the connection.
pub(super) fn ended(disconnect: &Disconnect<'_>) -> Failure {
    let why = because(disconnect.reason_string);
    let failure = Failure::new(format!("the broker ended the connection: {}{why}", disconnect.reason));
    match disconnect.reason {
        ReasonCode::NotAuthorized
        | ReasonCode::QuotaExceeded
        | ReasonCode::PacketTooLarge
        | ReasonCode::TopicFilterInvalid
        | ReasonCode::TopicNameInvalid
        | ReasonCode::PayloadFormatInvalid
        | ReasonCode::QoSNotSupported
        | ReasonCode::RetainNotSupported
        | ReasonCode::MalformedPacket
        | ReasonCode::ProtocolError
        | ReasonCode::ImplementationSpecificError => failure.with_code(REFUSED),
        _ => failure,
    }
}

/// 23 characters at most, as MQTT 3.1 has it.
pub(super) fn made_up_id() -> String {
    let mut random = [0; 6];
    getrandom::fill(&mut random).expect("the kernel's random generator");
    random.iter().fold("lockgate-".to_owned(), |id, byte| format!("{id}{byte:02x}"))
}

fn explain_way(target: &Target, error: &WayError) -> Failure {
    Failure::new(format!("{error}; `{}` looks into it", target.doctor))
}

fn explain_connect(target: &Target, error: &ConnectError) -> Failure {
    let mend = match error {
        ConnectError::Refused { reason: ReasonCode::BadUserNameOrPassword, .. } => target.credentials(),
        _ => format!("`{}` looks into it", target.doctor),
    };
    let failure = Failure::new(format!("{error}; {mend}"));
    match error {
        ConnectError::Refused { .. } => failure.with_code(REFUSED),
        _ => failure,
    }
}
