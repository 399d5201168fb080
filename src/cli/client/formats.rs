//! A client's credentials in the form that its program reads, with a configuration for it.

use std::fmt::Write;

use clap::ValueEnum;
use zeroize::Zeroizing;

use super::super::Failure;
use super::super::environment::Environment;
use crate::pki::{self, Protection};

/// What can be handed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Format {
    /// CA, certificate, key and full chain, and mqtt.env
    Pem,
    /// One PKCS #12 file under a password
    P12,
    /// CA, certificate and key (PKCS #8) as DER
    Der,
    /// Arrays for a C program
    CHeader,
    /// Texts and a configuration for ESP-IDF's esp-mqtt
    EspIdf,
    /// A Python program with paho-mqtt
    PythonPaho,
    /// A Node.js program with MQTT.js
    NodeMqtt,
    /// Key store, trust store and a Java program with Eclipse Paho
    Java,
    /// What to fill into Home Assistant's MQTT dialogue
    HomeAssistant,
    /// A flow to import into Node-RED
    NodeRed,
    /// A bridge of another mosquitto to this broker
    MosquittoBridge,
}

impl Format {
    pub(super) fn as_str(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

impl Format {
    /// Whether a login is part of it.
    pub(super) fn has_password(self) -> bool {
        !matches!(self, Format::P12 | Format::Der)
    }
}

/// Everything that a client has, and where the broker is.
pub(super) struct Bundle {
    pub(super) name: String,
    pub(super) host: String,
    pub(super) port: u16,
    /// The CA's certificates; `None`: without TLS.
    pub(super) ca_pem: Option<String>,
    /// The CA between that and the certificate, if there is one.
    pub(super) between: String,
    /// Certificate and key, PEM.
    pub(super) certificate: Option<(String, Zeroizing<String>)>,
    pub(super) user: Option<String>,
    pub(super) password: Option<Zeroizing<String>>,
    /// Where the files will lie, absolute.
    pub(super) folder: String,
    /// Of a key store.
    pub(super) store_password: Zeroizing<String>,
    pub(super) protection: Protection,
}

/// A file's name, content and mode.
pub(super) type File = (String, Zeroizing<Vec<u8>>, u32);

/// Writes one file after the other.
struct Files(Vec<File>);

impl Files {
    fn open(&mut self, name: &str, content: impl Into<Vec<u8>>) {
        self.0.push((name.to_owned(), Zeroizing::new(content.into()), 0o644));
    }

    fn secret(&mut self, name: &str, content: impl Into<Vec<u8>>) {
        self.0.push((name.to_owned(), Zeroizing::new(content.into()), 0o600));
    }
}

impl Bundle {
    pub(super) fn files(&self, format: Format) -> Result<Vec<File>, Failure> {
        let mut files = Files(Vec::new());
        match format {
            Format::Pem => {
                self.pem(&mut files);
                if let (Some((certificate, _)), Some(ca)) = (&self.certificate, &self.ca_pem) {
                    files.open("chain.crt", format!("{certificate}{}{ca}", self.between));
                }
                files.secret("mqtt.env", self.environment()?);
            }
            Format::P12 => {
                let (certificate, key) = self.certificate(format)?;
                let ca = self.ca_pem.as_deref().unwrap_or_default();
                let (name, password) = (&self.name, &self.store_password);
                let store = pki::pkcs12(name, certificate, key, ca, password, self.protection).map_err(Failure::new)?;
                files.secret(&format!("{name}.p12"), store);
            }
            Format::Der => {
                let (certificate, key) = self.certificate(format)?;
                let der = |pem: &str| pki::certificate_der(pem).map_err(Failure::new);
                files.open("ca.der", der(self.ca_pem.as_deref().unwrap_or_default())?);
                files.open("client.der", der(certificate)?);
                let key = pki::load_key(key.as_bytes()).map_err(Failure::new)?;
                files.secret("client-key.der", key.secret_der());
            }
            Format::CHeader => files.secret(&format!("{}.h", self.identifier()), self.c_header()?),
            Format::EspIdf => {
                files.secret(&format!("{}.h", self.identifier()), self.c_header()?);
                files.open("mqtt_client_config.c", self.esp_idf());
            }
            Format::PythonPaho => {
                self.pem(&mut files);
                files.secret("client.py", self.python());
            }
            Format::NodeMqtt => {
                self.pem(&mut files);
                files.secret("client.js", self.node());
            }
            Format::Java => self.java(&mut files)?,
            Format::HomeAssistant => {
                self.pem(&mut files);
                files.secret("home-assistant.txt", self.home_assistant());
            }
            Format::NodeRed => {
                self.pem(&mut files);
                files.secret("flow.json", self.node_red()?);
            }
            Format::MosquittoBridge => {
                self.pem(&mut files);
                files.secret("bridge.conf", self.bridge());
            }
        }
        Ok(files.0)
    }

    fn certificate(&self, format: Format) -> Result<(&str, &str), Failure> {
        let found = self.certificate.as_ref().map(|(certificate, key)| (certificate.as_str(), key.as_str()));
        found.ok_or_else(|| {
            Failure::new(format!(
                "{} has no certificate with its key here: {} is made of them; `--for pem` or a program's format will do",
                self.name,
                format.as_str()
            ))
        })
    }

    fn pem(&self, files: &mut Files) {
        if let Some(ca) = &self.ca_pem {
            files.open("ca.crt", ca.as_str());
        }
        if let Some((certificate, key)) = &self.certificate {
            files.open("client.crt", certificate.as_str());
            files.secret("client.key", key.as_str());
        }
    }

    fn in_folder(&self, name: &str) -> String {
        format!("{}/{name}", self.folder.trim_end_matches('/'))
    }

    /// Host and login alone, for a form that has the rest otherwise.
    pub(super) fn login(&self) -> Result<String, Failure> {
        self.login_environment().render().map_err(Failure::new)
    }

    fn login_environment(&self) -> Environment {
        Environment {
            host: self.host.clone(),
            port: self.port,
            use_tls: self.ca_pem.is_some(),
            user: self.user.clone(),
            password: self.password.as_ref().map(|password| password.to_string()),
            ..Environment::default()
        }
    }

    fn environment(&self) -> Result<String, Failure> {
        let environment = Environment {
            ca_certs: self.ca_pem.as_ref().map(|_| self.in_folder("ca.crt")),
            certificate: self
                .certificate
                .as_ref()
                .map(|_| (self.in_folder("client.crt"), self.in_folder("client.key"))),
            ..self.login_environment()
        };
        environment.render().map_err(Failure::new)
    }

    /// As it stands in a URL: an IPv6 address in brackets.
    fn url_host(&self) -> String {
        match self.host.parse::<std::net::Ipv6Addr>() {
            Ok(address) => format!("[{address}]"),
            Err(_) => self.host.clone(),
        }
    }

    fn scheme(&self) -> &'static str {
        if self.ca_pem.is_some() { "mqtts" } else { "mqtt" }
    }

    /// A topic of its own, which `acl: own` allows too.
    fn topic(&self) -> String {
        format!("{}/hello", self.name)
    }

    /// The name as C has names.
    fn identifier(&self) -> String {
        let plain: String = self.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        format!("mqtt_{}", plain.to_ascii_lowercase())
    }

    fn c_header(&self) -> Result<String, Failure> {
        let guard = self.identifier().to_ascii_uppercase();
        let mut text = format!(
            "/* What {} needs to connect. The private key and the password are secrets. */\n#ifndef {guard}_H\n#define {guard}_H\n\n\
             #define MQTT_HOST {}\n#define MQTT_PORT {}\n#define MQTT_URI \"{}://{}:{}\"\n#define MQTT_CLIENT_ID {}\n",
            self.name,
            json(&self.host),
            self.port,
            self.scheme(),
            self.url_host(),
            self.port,
            json(&self.name)
        );
        if let Some(user) = &self.user {
            let _ = writeln!(text, "#define MQTT_USER {}", json(user));
        }
        if let Some(password) = &self.password {
            let _ = writeln!(text, "#define MQTT_PASSWORD {}", json(password));
        }
        text.push('\n');
        let mut pems = Vec::new();
        let mut ders = Vec::new();
        if let Some(ca) = &self.ca_pem {
            pems.push(("mqtt_ca_pem", ca.as_str()));
            ders.push(("mqtt_ca_der", Zeroizing::new(pki::certificate_der(ca).map_err(Failure::new)?)));
        }
        if let Some((certificate, key)) = &self.certificate {
            pems.extend([("mqtt_client_cert_pem", certificate.as_str()), ("mqtt_client_key_pem", key.as_str())]);
            let der = pki::certificate_der(certificate).map_err(Failure::new)?;
            ders.push(("mqtt_client_cert_der", Zeroizing::new(der)));
            let key = pki::load_key(key.as_bytes()).map_err(Failure::new)?;
            ders.push(("mqtt_client_key_der", Zeroizing::new(key.secret_der().to_vec())));
        }
        text.push_str("/* PEM, with its final NUL: mbedTLS counts it. */\n");
        for (name, pem) in pems {
            let _ = writeln!(text, "static const char {name}[] =");
            let lines: Vec<String> = pem.lines().map(|line| format!("    \"{line}\\n\"")).collect();
            let _ = writeln!(text, "{};\n", lines.join("\n"));
        }
        text.push_str("/* The same as DER. */\n");
        for (name, der) in &ders {
            let _ = writeln!(text, "static const unsigned char {name}[{}] = {{", der.len());
            for row in der.chunks(12) {
                let bytes: Vec<String> = row.iter().map(|byte| format!("0x{byte:02x}")).collect();
                let _ = writeln!(text, "    {},", bytes.join(", "));
            }
            text.push_str("};\n\n");
        }
        let _ = writeln!(text, "#endif");
        Ok(text)
    }

    fn esp_idf(&self) -> String {
        let mut fields = String::from("    .broker.address.uri = MQTT_URI,\n");
        if self.ca_pem.is_some() {
            fields.push_str("    .broker.verification.certificate = mqtt_ca_pem,\n");
        }
        fields.push_str("    .credentials.client_id = MQTT_CLIENT_ID,\n");
        if self.user.is_some() {
            fields.push_str("    .credentials.username = MQTT_USER,\n");
        }
        if self.password.is_some() {
            fields.push_str("    .credentials.authentication.password = MQTT_PASSWORD,\n");
        }
        if self.certificate.is_some() {
            fields.push_str(
                "    .credentials.authentication.certificate = mqtt_client_cert_pem,\n    .credentials.authentication.key = mqtt_client_key_pem,\n",
            );
        }
        format!(
            "/* For ESP-IDF 5 and later: esp_mqtt_client_init(&mqtt_client_config). The clock has to be set (SNTP)\n * before TLS can tell whether the broker's certificate is valid. */\n\
             #include \"mqtt_client.h\"\n#include \"{}.h\"\n\nconst esp_mqtt_client_config_t mqtt_client_config = {{\n{fields}}};\n",
            self.identifier()
        )
    }

    fn python(&self) -> String {
        let mut set_up = String::new();
        if let Some(user) = &self.user {
            let password = self.password.as_ref().map_or("None".to_owned(), |password| json(password));
            let _ = writeln!(set_up, "client.username_pw_set({}, {password})", json(user));
        }
        if self.ca_pem.is_some() {
            let pair = match self.certificate {
                Some(_) => ", certfile=HERE / \"client.crt\", keyfile=HERE / \"client.key\"",
                None => "",
            };
            let _ = writeln!(set_up, "client.tls_set(ca_certs=HERE / \"ca.crt\"{pair})");
        }
        format!(
            r#""""Connects {name} to its broker, says hello to itself and leaves. Needs paho-mqtt 2: pip install paho-mqtt"""
import pathlib
import sys

import paho.mqtt.client as mqtt

HERE = pathlib.Path(__file__).resolve().parent
TOPIC = {topic}


def on_connect(client, userdata, flags, reason, properties):
    if reason.is_failure:
        sys.exit(f"the broker refuses: {{reason}}")
    client.subscribe(TOPIC, qos=1)


def on_subscribe(client, userdata, mid, reasons, properties):
    client.publish(TOPIC, "hello", qos=1)


def on_message(client, userdata, message):
    print(message.topic, message.payload.decode())
    client.disconnect()


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id={id}, protocol=mqtt.MQTTv5)
{set_up}client.on_connect = on_connect
client.on_subscribe = on_subscribe
client.on_message = on_message
client.connect({host}, {port})
client.loop_forever()
"#,
            name = self.name,
            topic = json(&self.topic()),
            id = json(&self.name),
            host = json(&self.host),
            port = self.port,
        )
    }

    fn node(&self) -> String {
        let mut options = format!("  clientId: {},\n  protocolVersion: 5,\n", json(&self.name));
        if let Some(user) = &self.user {
            let _ = writeln!(options, "  username: {},", json(user));
        }
        if let Some(password) = &self.password {
            let _ = writeln!(options, "  password: {},", json(password));
        }
        if self.ca_pem.is_some() {
            options.push_str("  ca: read('ca.crt'),\n");
        }
        if self.certificate.is_some() {
            options.push_str("  cert: read('client.crt'),\n  key: read('client.key'),\n");
        }
        format!(
            r#"// Connects {name} to its broker, says hello to itself and leaves. Needs MQTT.js: npm install mqtt
const fs = require('fs')
const path = require('path')
const mqtt = require('mqtt')

const read = (name) => fs.readFileSync(path.join(__dirname, name))
const topic = {topic}

const client = mqtt.connect({url}, {{
{options}}})
client.on('connect', () => client.subscribe(topic, {{ qos: 1 }}, () => client.publish(topic, 'hello', {{ qos: 1 }})))
client.on('message', (topic, payload) => {{
  console.log(topic, payload.toString())
  client.end()
}})
client.on('error', (error) => {{
  console.error(`the broker refuses: ${{error.message}}`)
  process.exit(1)
}})
"#,
            name = self.name,
            topic = json(&self.topic()),
            url = json(&format!("{}://{}:{}", self.scheme(), self.url_host(), self.port)),
        )
    }

    fn java(&self, files: &mut Files) -> Result<(), Failure> {
        let mut set_up = String::new();
        if let Some(user) = &self.user {
            let _ = writeln!(set_up, "        options.setUserName({});", json(user));
        }
        if let Some(password) = &self.password {
            let _ = writeln!(set_up, "        options.setPassword({}.toCharArray());", json(password));
        }
        let (store_password, protection) = (&self.store_password, self.protection);
        let mut tls = Vec::new();
        if let Some(ca) = &self.ca_pem {
            files.open("truststore.p12", pki::truststore(ca, store_password, protection).map_err(Failure::new)?);
            tls.extend([
                ("com.ibm.ssl.trustStore", "truststore.p12"),
                ("com.ibm.ssl.trustStoreType", "PKCS12"),
                ("com.ibm.ssl.trustStorePassword", store_password.as_str()),
            ]);
            if let Some((certificate, key)) = &self.certificate {
                let store = pki::pkcs12(&self.name, certificate, key, ca, store_password, protection);
                files.secret("keystore.p12", store.map_err(Failure::new)?);
                tls.extend([
                    ("com.ibm.ssl.keyStore", "keystore.p12"),
                    ("com.ibm.ssl.keyStoreType", "PKCS12"),
                    ("com.ibm.ssl.keyStorePassword", store_password.as_str()),
                ]);
            }
            set_up.push_str("        java.util.Properties tls = new java.util.Properties();\n");
            for (key, value) in tls {
                let _ = writeln!(set_up, "        tls.setProperty({}, {});", json(key), json(value));
            }
            set_up.push_str("        options.setSSLProperties(tls);\n");
        }
        let scheme = if self.ca_pem.is_some() { "ssl" } else { "tcp" };
        let text = format!(
            r#"// Connects {name} to its broker and says hello. Needs org.eclipse.paho.client.mqttv3 1.2; run it in this folder.
import org.eclipse.paho.client.mqttv3.*;
import org.eclipse.paho.client.mqttv3.persist.MemoryPersistence;

public class Client {{
    public static void main(String[] arguments) throws MqttException {{
        MqttConnectOptions options = new MqttConnectOptions();
{set_up}        MqttClient client = new MqttClient({url}, {id}, new MemoryPersistence());
        client.connect(options);
        client.publish({topic}, "hello".getBytes(), 1, false);
        client.disconnect();
        client.close();
    }}
}}
"#,
            name = self.name,
            url = json(&format!("{scheme}://{}:{}", self.url_host(), self.port)),
            id = json(&self.name),
            topic = json(&self.topic()),
        );
        files.secret("Client.java", text);
        Ok(())
    }

    fn home_assistant(&self) -> String {
        let mut text = format!(
            "Settings, Devices & services, Add integration, MQTT. Then:\n\n  Broker               {}\n  Port                 {}\n",
            self.host, self.port
        );
        let mut line = |label: &str, value: &str| {
            let _ = writeln!(text, "  {label:<20} {value}");
        };
        if let Some(user) = &self.user {
            line("Username", user);
        }
        if let Some(password) = &self.password {
            line("Password", password);
        }
        line("Client ID", &self.name);
        if self.ca_pem.is_some() {
            line("CA validation", "Custom, with ca.crt of this folder");
            line("Ignore validation", "off");
        }
        if self.certificate.is_some() {
            line("Client certificate", "on: client.crt, and client.key as its private key");
        }
        line("MQTT protocol", "5");
        text
    }

    fn node_red(&self) -> Result<String, Failure> {
        let tls = self.ca_pem.is_some().then(|| {
            serde_json::json!({
                "id": "lockgate-tls", "type": "tls-config", "name": format!("{} TLS", self.name),
                "cert": if self.certificate.is_some() { self.in_folder("client.crt") } else { String::new() },
                "key": if self.certificate.is_some() { self.in_folder("client.key") } else { String::new() },
                "ca": self.in_folder("ca.crt"), "certname": "", "keyname": "", "caname": "", "servername": self.host,
                "verifyservercert": true, "alpnprotocol": "",
            })
        });
        let broker = serde_json::json!({
            "id": "lockgate-broker", "type": "mqtt-broker", "name": self.name, "broker": self.host,
            "port": self.port.to_string(), "tls": if tls.is_some() { "lockgate-tls" } else { "" },
            "clientid": self.name, "autoConnect": true, "usetls": tls.is_some(), "protocolVersion": "5",
            "keepalive": "60", "cleansession": true,
            "credentials": {
                "user": self.user.clone().unwrap_or_default(),
                "password": self.password.as_ref().map(|password| password.to_string()).unwrap_or_default(),
            },
        });
        let input = serde_json::json!({
            "id": "lockgate-in", "type": "mqtt in", "z": "lockgate-flow", "name": "", "topic": format!("{}/#", self.name),
            "qos": "1", "datatype": "auto-detect", "broker": "lockgate-broker", "nl": false, "rap": true, "rh": 0,
            "x": 160, "y": 80, "wires": [["lockgate-debug"]],
        });
        let flow = serde_json::json!({ "id": "lockgate-flow", "type": "tab", "label": self.name });
        let debug = serde_json::json!({
            "id": "lockgate-debug", "type": "debug", "z": "lockgate-flow", "name": "", "active": true, "x": 380, "y": 80,
            "wires": [],
        });
        let all: Vec<_> = [Some(flow), tls, Some(broker), Some(input), Some(debug)].into_iter().flatten().collect();
        Ok(serde_json::to_string_pretty(&all).map_err(Failure::new)? + "\n")
    }

    fn bridge(&self) -> String {
        let mut text = format!(
            "# For the other broker's mosquitto.conf: what it gets below {name}/ comes here.\nconnection {name}\naddress {host}:{port}\n\
             remote_clientid {name}\nbridge_protocol_version mqttv311\ntopic {name}/# out 1\ntry_private false\n",
            name = self.name,
            host = self.host,
            port = self.port
        );
        if let Some(user) = &self.user {
            let _ = writeln!(text, "remote_username {user}");
        }
        if let Some(password) = &self.password {
            let _ = writeln!(text, "remote_password {}", password.as_str());
        }
        if self.ca_pem.is_some() {
            let _ = writeln!(text, "bridge_cafile {}", self.in_folder("ca.crt"));
        }
        if self.certificate.is_some() {
            let (certificate, key) = (self.in_folder("client.crt"), self.in_folder("client.key"));
            let _ = writeln!(text, "bridge_certfile {certificate}\nbridge_keyfile {key}");
        }
        text
    }
}

/// A text as JSON, Python, JavaScript, C and Java all read it.
fn json(text: &str) -> String {
    serde_json::to_string(text).expect("a text")
}
