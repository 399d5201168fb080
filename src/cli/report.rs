//! What `init` made, for people and for programs, and the commands to try it with.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::{self, ClientCerts, ListenerAddress, Transport};

/// What there is now, for people and for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Report {
    pub(super) configuration: PathBuf,
    pub(super) made: Vec<MadeFile>,
    pub(super) existed: Vec<PathBuf>,
    pub(super) clients: Vec<ClientReport>,
    pub(super) listeners: Vec<ListenerReport>,
    pub(super) notes: Vec<String>,
    #[serde(skip)]
    pub(super) reach: Option<TryIt>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct MadeFile {
    pub(super) what: String,
    pub(super) path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fingerprint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) days_left: Option<i64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ClientReport {
    pub(super) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bundle: Option<PathBuf>,
    pub(super) certificate: bool,
    pub(super) password: bool,
    pub(super) existed: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ListenerReport {
    pub(super) address: String,
    pub(super) transport: String,
    pub(super) open_to: String,
    pub(super) demands: String,
}

/// What the printed commands use.
#[derive(Debug)]
pub(super) struct TryIt {
    pub(super) bundle: PathBuf,
    pub(super) name: String,
    /// Where a certificate can be shown.
    pub(super) tls_port: Option<u16>,
}

pub(super) fn listener_report(listener: &config::Listener) -> ListenerReport {
    let (open_to, port) = match &listener.address {
        ListenerAddress::Loopback(port) => ("this machine alone (127.0.0.1 and ::1)".to_owned(), Some(*port)),
        ListenerAddress::All(port) => ("every machine that reaches this one".to_owned(), Some(*port)),
        ListenerAddress::Ip(address, port) => (format!("whoever reaches {address}"), Some(*port)),
        ListenerAddress::Unix(path) => (format!("programs here, through {}", path.display()), None),
    };
    let certificates = match &listener.transport {
        Transport::Tls(files) => match files.client_certs {
            ClientCerts::Off => "a password",
            ClientCerts::Optional => "a certificate or a password",
            ClientCerts::Required => "a certificate",
        },
        _ => "a password",
    };
    let demands = match listener.rules.allow_anonymous {
        true => format!("{certificates}, or nothing"),
        false => certificates.to_owned(),
    };
    ListenerReport {
        address: port.map_or_else(|| listener.address.to_string(), |port| port.to_string()),
        transport: match listener.transport_name() {
            "tcp" => "plain MQTT",
            "tls" => "MQTT over TLS",
            "ws" => "MQTT over WebSocket",
            "wss" => "MQTT over WebSocket and TLS",
            _ => "unix socket",
        }
        .to_owned(),
        open_to,
        demands,
    }
}

pub(super) fn shell(path: &Path) -> String {
    let text = path.to_string_lossy();
    shlex::try_quote(&text).map_or_else(|_| text.to_string(), |quoted| quoted.into_owned())
}

impl Report {
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        if !self.made.is_empty() || self.clients.iter().any(|client| !client.existed) {
            let mut table = new_table(&["Made", "Where", "Days left", "SHA-256"]);
            for made in &self.made {
                let days = made.days_left.map(|days| days.to_string()).unwrap_or_default();
                let short = made.fingerprint.as_deref().map(|full| format!("{}…", &full[..23])).unwrap_or_default();
                table.add_row([&made.what, &made.path.display().to_string(), &days, &short]);
            }
            for client in self.clients.iter().filter(|client| !client.existed) {
                let what = match (client.certificate, client.password) {
                    (true, true) => "certificate, password",
                    (true, false) => "certificate",
                    _ => "password",
                };
                let place = client
                    .bundle
                    .as_ref()
                    .map_or("(only its hash is kept)".to_owned(), |path| path.display().to_string() + "/");
                table.add_row([&format!("{}: {what}", client.name), &place, "", ""]);
            }
            text.push_str(&format!("{table}\n"));
            // What clients trust, and compare.
            let of = |what: &str| self.made.iter().find(|made| made.what == what);
            let ca = of("root certificate").or_else(|| of("CA certificate"));
            if let Some(fingerprint) = ca.and_then(|made| made.fingerprint.as_deref()) {
                text.push_str(&format!("The CA's SHA-256 fingerprint: {fingerprint}\n"));
            }
        }
        let existing = self.existed.len() + self.clients.iter().filter(|client| client.existed).count();
        if existing > 0 {
            text.push_str("\nExisted, and was not changed:\n");
            for path in &self.existed {
                text.push_str(&format!("  {}\n", path.display()));
            }
            for client in self.clients.iter().filter(|client| client.existed) {
                text.push_str(&format!("  client {}\n", client.name));
            }
        }
        text.push('\n');
        let mut table = new_table(&["Port", "Speaks", "Open to", "Asks for"]);
        for listener in &self.listeners {
            table.add_row([&listener.address, &listener.transport, &listener.open_to, &listener.demands]);
        }
        text.push_str(&format!("{table}\n"));
        if self
            .listeners
            .iter()
            .any(|listener| listener.transport == "plain MQTT" && listener.open_to.starts_with("this machine"))
        {
            text.push_str(&format!(
                "Plain MQTT is for this machine alone. To open it to the network, which lets anybody on the\nway read passwords and messages, set `address: all` on that listener in {}.\n",
                self.configuration.display()
            ));
        }
        if self
            .listeners
            .iter()
            .any(|listener| listener.transport == "plain MQTT" && !listener.open_to.starts_with("this machine"))
        {
            text.push_str(
                "WARNING: plain MQTT is open to the network: anybody on the way can read passwords and messages.\n",
            );
        }
        for note in &self.notes {
            text.push_str(&format!("Note: {note}\n"));
        }
        text
    }

    /// Commands that work as they are printed.
    pub(super) fn commands(&self, serve: &str) -> String {
        let Some(reach) = &self.reach else {
            let config = shell(&self.configuration);
            return format!(
                "\nStart the broker:\n  {serve}\n\nAdd a client:\n  lockgate client add device1 --config {config}\n"
            );
        };
        let start = if serve.is_empty() { String::new() } else { format!("\nStart the broker:\n  {serve}\n") };
        let terminals = if reach.tls_port.is_some() { "in two other terminals" } else { "in another terminal" };
        format!("{start}\nTry it, {terminals}:\n{}{}", reach.mosquitto(), reach.python())
    }
}

impl TryIt {
    /// With a certificate: a password would be shown on the command line.
    fn mosquitto(&self) -> String {
        let Some(port) = self.tls_port else { return String::new() };
        let topic = format!("{}/hello", self.name);
        let file = |name: &str| shell(&self.bundle.join(name));
        let options = format!(
            "-h localhost -p {port} --cafile {} \\\n    --cert {} --key {}",
            file("ca.crt"),
            file("client.crt"),
            file("client.key")
        );
        format!(
            "  mosquitto_sub {options} \\\n    -t {topic} -v\n\n  mosquitto_pub {options} \\\n    -t {topic} -m 'The gate is open'\n"
        )
    }

    fn python(&self) -> String {
        let environment = self.bundle.join("mqtt.env").display().to_string();
        let topic = format!("{}/hello", self.name);
        format!(
            r#"
From Python (pip install 'paho-mqtt>=2'):
python3 - <<'PYTHON'
import paho.mqtt.client as mqtt
env = dict(line.strip().split("=", 1) for line in open("{environment}"))
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
if "MQTT_PASSWORD" in env:
    client.username_pw_set(env["MQTT_USER"], env["MQTT_PASSWORD"])
if env["MQTT_USE_TLS"] == "true":
    client.tls_set(env["MQTT_CA_CERTS"], env.get("MQTT_CERTFILE"), env.get("MQTT_KEYFILE"))
client.connect(env["MQTT_HOST"], int(env["MQTT_PORT"]))
client.loop_start()
client.publish("{topic}", "The gate is open, says Python", qos=1).wait_for_publish(10)
client.disconnect()
client.loop_stop()
PYTHON
"#
        )
    }
}

pub(super) fn new_table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(header);
    table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    table
}
