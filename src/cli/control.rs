//! What clients ask the broker itself: `$CONTROL/broker/v1` and the HTTP API, in Mosquitto's words.

use std::sync::Arc;

use arc_swap::ArcSwap;
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;
use tracing::info;

use crate::broker::Announcement;
use crate::config::{Listener, ListenerAddress, Settings, Transport};
use crate::shard::{Handle, Question};

const ENDPOINT: &str = "$CONTROL/broker/v1";

/// Questions that may wait.
pub(super) const QUESTIONS_MAX: usize = 64;

/// Commands of one question that are looked at.
const COMMANDS_MAX: usize = 32;

/// Answers as long as somebody asks.
pub(super) async fn keep_answering(mut questions: Receiver<Question>, current: Arc<ArcSwap<Settings>>, shard: Handle) {
    while let Some(question) = questions.recv().await {
        let settings = current.load();
        let topic = format!("{}/response", question.topic);
        let told = match question.topic == ENDPOINT && settings.control_api {
            true => {
                let text = answer(&question, &settings).to_string();
                shard.announce(vec![Announcement { topic, text, retained: false, to: None }])
            }
            false => shard.tell(question.client, topic, json!({ "error": "endpoint not available" }).to_string()),
        };
        if told.is_err() {
            return;
        }
    }
}

fn answer(question: &Question, settings: &Settings) -> Value {
    let wrong = |command: &str, what: &str| json!({ "command": command, "error": what });
    let Ok(asked) = serde_json::from_slice::<Value>(&question.payload) else {
        return json!({ "responses": [wrong("Unknown command", "Payload not valid JSON")] });
    };
    let Some(commands) = asked.get("commands").and_then(Value::as_array) else {
        return json!({ "responses": [wrong("Unknown command", "Invalid/missing commands")] });
    };
    let user = question.identity.as_ref().map_or("(null)", |identity| identity.as_str());
    let mut responses = Vec::new();
    for command in commands.iter().take(COMMANDS_MAX) {
        if !command.is_object() {
            responses.push(wrong("Unknown command", "Command not an object"));
            break;
        }
        let Some(name) = command.get("command").and_then(Value::as_str) else {
            responses.push(wrong("Unknown command", "Missing command"));
            break;
        };
        let correlation = command.get("correlationData");
        if correlation.is_some_and(|data| !data.is_string()) {
            responses.push(wrong(name, "Invalid correlationData data type."));
            break;
        }
        let known = match name.to_ascii_lowercase().as_str() {
            "listplugins" => Some(("listPlugins", json!({ "plugins": plugins(settings) }))),
            "listlisteners" => Some(("listListeners", json!({ "listeners": controlled(settings) }))),
            _ => None,
        };
        let mut response = match known {
            None => wrong(name, "Unknown command"),
            Some((name, data)) => {
                info!("Broker: {}/{user} | {name}", question.client);
                json!({ "command": name, "data": data })
            }
        };
        if let Some(data) = correlation {
            response["correlationData"] = data.clone();
        }
        responses.push(response);
    }
    json!({ "responses": responses })
}

/// Those whose work is built in, where they were named.
fn plugins(settings: &Settings) -> Vec<Value> {
    settings.plugins.iter().map(|name| json!({ "name": name, "control-endpoints": [] })).collect()
}

/// As `listListeners` has them.
fn controlled(settings: &Settings) -> Vec<Value> {
    let one = |listener: &Listener| {
        let mut value = json!({ "port": listener.address.port().unwrap_or(0), "tls": has_tls(listener) });
        if let Some(protocol) = match (&listener.pages, &listener.websocket) {
            (_, Some(_)) => Some("mqtt+websockets"),
            (None, None) => Some("mqtt"),
            (Some(_), None) => None,
        } {
            value["protocol"] = protocol.into();
        }
        match &listener.address {
            ListenerAddress::Ip(address, _) => value["bind-address"] = address.to_string().into(),
            ListenerAddress::Loopback(_) => value["bind-address"] = "localhost".into(),
            ListenerAddress::Unix(path) => value["socket-path"] = path.to_string_lossy().into(),
            ListenerAddress::All(_) => {}
        }
        value
    };
    settings.listeners.iter().map(one).collect()
}

/// `/api/v1/listeners`.
pub(super) fn listeners(settings: &Settings) -> Value {
    let one = |listener: &Listener| {
        let protocol = match (&listener.websocket, &listener.pages) {
            (Some(_), _) => "websockets",
            (None, Some(_)) => "httpapi",
            (None, None) => "mqtt",
        };
        let mtls = matches!(&listener.transport, Transport::Tls(files) if files.client_certs == crate::config::ClientCerts::Required);
        let mut value = json!({
            "protocol": protocol,
            "tls": has_tls(listener),
            "mtls": mtls,
            "allow_anonymous": listener.rules.allow_anonymous,
        });
        match &listener.address {
            ListenerAddress::Unix(path) => value["path"] = path.to_string_lossy().into(),
            address => value["port"] = address.port().unwrap_or(0).into(),
        }
        value
    };
    json!({ "listeners": settings.listeners.iter().map(one).collect::<Vec<_>>() })
}

fn has_tls(listener: &Listener) -> bool {
    matches!(listener.transport, Transport::Tls(_))
}
