//! `lockgate pub`: messages for any broker.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{ArgAction, Args};
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin};

use super::dial::{Dial, PATIENCE, Properties, REFUSED, Session};
use super::{Failure, site};
use crate::client::{Connection, Incoming, describe};
use crate::codec::{Ack, Packet, PropertyBlock, Publish, Version};
use crate::types::{PacketId, QoS, ReasonCode, Topic};

#[derive(Args)]
#[command(
    after_help = "Examples:\n  lockgate pub --as pump7 -t pumps/7/level -m 42 -q 1\n  lockgate pub --env mqtt.env -t pumps/7/photo -f photo.jpg\n  lockgate sub --as alice -t 'pumps/#' --json | lockgate pub -h other.example --json\n  lockgate pub -h test.example -t t -m m -D publish user-property unit cm\n\nExit codes: 0 all was published, and at QoS 1 and 2 acknowledged; 1 no connection; 2 the command line; 3 the\nbroker refused the client or a message."
)]
pub(super) struct Arguments {
    /// The topic
    #[arg(short = 't', long, required_unless_present = "json")]
    topic: Option<String>,
    /// The payload
    #[arg(short = 'm', long, value_name = "TEXT", conflicts_with_all = ["file", "stdin_line", "stdin_file", "null_message", "json"])]
    message: Option<String>,
    /// The payload is this file
    #[arg(short = 'f', long, value_name = "FILE", conflicts_with_all = ["stdin_line", "stdin_file", "null_message", "json"])]
    file: Option<PathBuf>,
    /// Each line of standard input is a payload
    #[arg(short = 'l', long, conflicts_with_all = ["stdin_file", "null_message", "json"])]
    stdin_line: bool,
    /// Standard input as a whole is the payload
    #[arg(short = 's', long, conflicts_with_all = ["null_message", "json"])]
    stdin_file: bool,
    /// An empty payload: with -r it clears what was retained
    #[arg(short = 'n', long, conflicts_with = "json")]
    null_message: bool,
    /// Each line of standard input is a message as JSON, as `lockgate sub --json` prints it; -t, -q and -r hold where it says nothing
    #[arg(long)]
    json: bool,
    /// The QoS
    #[arg(short = 'q', long, value_name = "QOS", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: u8,
    /// Retain it
    #[arg(short = 'r', long)]
    retain: bool,
    /// Publish it so many times
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with_all = ["stdin_line", "json"])]
    repeat: u32,
    /// Seconds between them
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0, requires = "repeat")]
    repeat_delay: f64,
    #[command(flatten)]
    dial: Dial,
    #[command(flatten)]
    session: Session,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// A message to publish.
#[derive(Clone, Debug)]
struct Message {
    topic: String,
    payload: Vec<u8>,
    qos: QoS,
    retain: bool,
    properties: PropertyBlock,
}

/// Messages whose acknowledgement may be waited for at once.
const WINDOW: usize = 20;

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let target = arguments.dial.target()?;
    let properties = arguments.session.properties()?;
    let mut messages = Messages::of(arguments, &properties)?;
    site::runtime().block_on(async {
        let (connection, welcome) = arguments.session.open(&target, &properties).await?;
        let mut publisher = Publisher::new(connection, &welcome, arguments.session.keepalive);
        loop {
            tokio::select! {
                message = messages.next() => match message? {
                    Some(message) => publisher.publish(&message).await?,
                    None => return publisher.finish().await,
                },
                // While nothing is to be sent, what comes is heard.
                incoming = publisher.connection.receive() => {
                    let incoming = incoming.map_err(|error| publisher.lost(&error))?;
                    publisher.take(&incoming).await?;
                }
                () = tokio::time::sleep(publisher.quiet) => publisher.ping().await?,
            }
        }
    })
}

/// Where messages come from.
enum Messages<'a> {
    Given { message: Message, left: u32, delay: Duration, is_first: bool },
    Lines { lines: Lines<BufReader<Stdin>>, template: Message, as_json: Option<&'a str>, number: u64 },
}

impl<'a> Messages<'a> {
    fn of(arguments: &'a Arguments, properties: &Properties) -> Result<Messages<'a>, Failure> {
        let mut message = Message {
            topic: arguments.topic.clone().unwrap_or_default(),
            payload: Vec::new(),
            qos: QoS::from_bits(arguments.qos).expect("clap takes no other"),
            retain: arguments.retain,
            properties: properties.publish.clone(),
        };
        if let Some(topic) = &arguments.topic {
            check_topic(topic)?;
        }
        if arguments.json || arguments.stdin_line {
            let lines = BufReader::new(tokio::io::stdin()).lines();
            let as_json = arguments.json.then_some("standard input");
            return Ok(Messages::Lines { lines, template: message, as_json, number: 0 });
        }
        message.payload = match (&arguments.message, &arguments.file) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(file)) => {
                std::fs::read(file).map_err(|error| Failure::new(format!("cannot read {}: {error}", file.display())))?
            }
            (None, None) if arguments.stdin_file => {
                let mut payload = Vec::new();
                let read = std::io::stdin().read_to_end(&mut payload);
                read.map_err(|error| Failure::new(format!("cannot read standard input: {error}")))?;
                payload
            }
            (None, None) if arguments.null_message => Vec::new(),
            (None, None) => {
                return Err(Failure::configuration(
                    "there is nothing to publish: -m TEXT, -f FILE, -l (lines of standard input), -s (all of it), -n (nothing) or --json",
                ));
            }
        };
        let delay = Duration::try_from_secs_f64(arguments.repeat_delay)
            .map_err(|_| Failure::configuration("--repeat-delay is a number of seconds"))?;
        Ok(Messages::Given { message, left: arguments.repeat, delay, is_first: true })
    }

    async fn next(&mut self) -> Result<Option<Message>, Failure> {
        match self {
            Messages::Given { message, left, delay, is_first } => {
                if *left == 0 {
                    return Ok(None);
                }
                if !std::mem::replace(is_first, false) {
                    tokio::time::sleep(*delay).await;
                }
                *left -= 1;
                Ok(Some(message.clone()))
            }
            Messages::Lines { lines, template, as_json, number } => {
                let read = lines.next_line().await;
                let line = read.map_err(|error| Failure::new(format!("cannot read standard input: {error}")))?;
                *number += 1;
                let Some(line) = line else { return Ok(None) };
                match as_json {
                    None => Ok(Some(Message { payload: line.into_bytes(), ..template.clone() })),
                    Some(source) => parse(&line, template)
                        .map(Some)
                        .map_err(|what| Failure::configuration(format!("{source}:{number}: {what}"))),
                }
            }
        }
    }
}

fn check_topic(topic: &str) -> Result<(), Failure> {
    Topic::parse(topic).map(drop).map_err(|error| Failure::configuration(format!("{topic:?} is no topic: {error}")))
}

/// A line of `lockgate sub --json`; what it does not say is as in `template`.
fn parse(line: &str, template: &Message) -> Result<Message, String> {
    let value: serde_json::Value = serde_json::from_str(line).map_err(|error| format!("this is no JSON: {error}"))?;
    let text = |name: &str| value.get(name).and_then(serde_json::Value::as_str);
    let mut message = template.clone();
    if let Some(topic) = text("topic") {
        message.topic = topic.to_owned();
    }
    check_topic(&message.topic).map_err(|failure| failure.message)?;
    message.payload = match (text("payload"), text("payload-base64")) {
        (Some(payload), _) => payload.to_owned().into_bytes(),
        (None, Some(encoded)) => STANDARD.decode(encoded).map_err(|error| format!("payload-base64: {error}"))?,
        (None, None) => match value.get("payload") {
            Some(other) => other.to_string().into_bytes(),
            None => return Err("it has neither payload nor payload-base64".to_owned()),
        },
    };
    if let Some(qos) = value.get("qos") {
        let qos = qos.as_u64().and_then(|qos| QoS::from_bits(qos as u8));
        message.qos = qos.ok_or("qos is 0, 1 or 2")?;
    }
    if let Some(retain) = value.get("retain").and_then(serde_json::Value::as_bool) {
        message.retain = retain;
    }
    if let Some(text) = text("content-type") {
        message.properties.content_type(text);
    }
    if let Some(text) = text("response-topic") {
        message.properties.response_topic(text);
    }
    if let Some(data) = text("correlation-data") {
        let data = STANDARD.decode(data).map_err(|error| format!("correlation-data: {error}"))?;
        message.properties.correlation_data(&data);
    }
    if let Some(secs) = value.get("message-expiry-interval").and_then(serde_json::Value::as_u64) {
        message.properties.message_expiry_interval(secs as u32);
    }
    for pair in value.get("user-properties").and_then(serde_json::Value::as_array).into_iter().flatten() {
        if let (Some(name), Some(value)) = (pair[0].as_str(), pair[1].as_str()) {
            message.properties.user_property(name, value);
        }
    }
    Ok(message)
}

/// Publishes, and waits for what the broker says of it.
struct Publisher {
    connection: Connection,
    window: usize,
    /// Topics whose acknowledgement is waited for, and whether PUBREL is out.
    pending: BTreeMap<PacketId, String>,
    /// The first refusal.
    refused: Option<String>,
    count: u64,
    /// After so long without a word the broker is told that this client lives.
    quiet: Duration,
}

impl Publisher {
    fn new(connection: Connection, welcome: &Incoming, keep_alive: u16) -> Publisher {
        let (receive_maximum, keep_alive) = match welcome.packet() {
            Ok(Packet::ConnAck(connack)) => {
                (connack.receive_maximum.unwrap_or(u16::MAX), connack.server_keep_alive.unwrap_or(keep_alive))
            }
            _ => (u16::MAX, keep_alive),
        };
        let quiet = match keep_alive {
            0 => Duration::from_secs(86_400),
            secs => Duration::from_millis(u64::from(secs) * 500),
        };
        let window = WINDOW.min(receive_maximum.into());
        Publisher { connection, window, pending: BTreeMap::new(), refused: None, count: 0, quiet }
    }

    async fn publish(&mut self, message: &Message) -> Result<(), Failure> {
        while self.pending.len() >= self.window {
            self.take_answer().await?;
        }
        let properties = message.properties.publish();
        let properties = properties.map_err(|error| Failure::configuration(format!("properties: {error}")))?;
        let packet_id = (message.qos != QoS::AtMostOnce).then(|| self.connection.next_id());
        let packet = Packet::Publish(Publish {
            dup: false,
            qos: message.qos,
            retain: message.retain,
            topic: &message.topic,
            packet_id,
            properties: properties.get(),
            payload: &message.payload,
        });
        self.connection.send(&packet).await.map_err(|error| self.lost(&error))?;
        self.count += 1;
        if let Some(packet_id) = packet_id {
            self.pending.insert(packet_id, message.topic.clone());
        }
        Ok(())
    }

    async fn take_answer(&mut self) -> Result<(), Failure> {
        let received = tokio::time::timeout(PATIENCE, self.connection.receive()).await;
        let incoming = match received {
            Ok(Ok(incoming)) => incoming,
            Ok(Err(error)) => return Err(self.lost(&error)),
            Err(_) => {
                return Err(Failure::new(format!(
                    "the broker did not acknowledge {} message(s) within {} s: whether they arrived is not known; publish them again",
                    self.pending.len(),
                    PATIENCE.as_secs()
                )));
            }
        };
        self.take(&incoming).await
    }

    /// A sign of life, where there is nothing to say for long.
    async fn ping(&mut self) -> Result<(), Failure> {
        self.connection.send(&Packet::PingReq).await.map_err(|error| self.lost(&error))
    }

    async fn take(&mut self, incoming: &Incoming) -> Result<(), Failure> {
        let packet = incoming.packet().map_err(|error| Failure::new(format!("the broker's answer: {error}")))?;
        match packet {
            Packet::PubAck(ack) | Packet::PubComp(ack) => self.done(&ack),
            Packet::PubRec(ack) if ack.reason.is_error() => self.done(&ack),
            Packet::PubRec(ack) => {
                let release = Packet::PubRel(Ack::new(ack.packet_id, ReasonCode::Success));
                self.connection.send(&release).await.map_err(|error| self.lost(&error))?;
            }
            Packet::Disconnect(disconnect) => {
                let why = disconnect.reason_string.map(|why| format!(" ({why})")).unwrap_or_default();
                let what = format!("the broker ended the connection: {}{why}", disconnect.reason);
                return Err(Failure::new(what).with_code(REFUSED));
            }
            _ => {}
        }
        Ok(())
    }

    fn done(&mut self, ack: &Ack<'_>) {
        let Some(topic) = self.pending.remove(&ack.packet_id) else { return };
        if ack.reason.is_error() && self.refused.is_none() {
            let why = ack.reason_string.map(|why| format!(" ({why})")).unwrap_or_default();
            self.refused = Some(format!("the broker refuses a message for {topic:?}: {}{why}", ack.reason));
        }
    }

    fn lost(&self, error: &std::io::Error) -> Failure {
        Failure::new(format!(
            "the connection broke ({}) after {} message(s), {} of them not acknowledged; before MQTT 5 that is how a broker refuses a message, too",
            describe(error),
            self.count,
            self.pending.len()
        ))
    }

    async fn finish(mut self) -> Result<(), Failure> {
        while !self.pending.is_empty() {
            self.take_answer().await?;
        }
        let version = self.connection.version();
        let (refused, count) = (self.refused.take(), self.count);
        let left = self.connection.leave(ReasonCode::Success).await;
        if let Some(refused) = refused {
            return Err(Failure::new(refused).with_code(REFUSED));
        }
        match left {
            Err(error) if version != Version::V5 || count > 0 => {
                Err(Failure::new(format!("the connection broke before all was sent: {}", describe(&error))))
            }
            _ => Ok(()),
        }
    }
}
