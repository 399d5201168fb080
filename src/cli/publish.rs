//! `lockgate pub`: messages for any broker.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{ArgAction, Args};
use tokio::io::{AsyncBufReadExt, BufReader, Stdin};
use tokio::time::Instant;

use super::dial::{Dial, PATIENCE, Properties, REFUSED, Session, ended, fits, quiet};
use super::{Failure, site};
use crate::client::{Connection, Incoming, because, describe};
use crate::codec::{Ack, PACKET_SIZE_MAX, Packet, PropertyBlock, Publish, Version, encode};
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
    let runtime = site::runtime();
    let published = runtime.block_on(async {
        let (connection, welcome) = arguments.session.open(&target, &properties).await?;
        let mut publisher = Publisher::new(connection, &welcome, arguments.session.keepalive);
        loop {
            let message = tokio::select! {
                message = messages.next() => message,
                // While nothing is to be sent, what comes is heard.
                event = publisher.event() => {
                    publisher.react(event?).await?;
                    continue;
                }
            };
            match message.and_then(|message| message.map(|message| publisher.check(message)).transpose()) {
                Ok(Some(message)) => publisher.publish(&message).await?,
                Ok(None) => return publisher.finish().await,
                Err(failure) => {
                    // What came before it is published all the same.
                    publisher.finish().await?;
                    return Err(failure);
                }
            }
        }
    });
    // Whoever still reads standard input does not keep this from ending.
    runtime.shutdown_background();
    published
}

/// Where messages come from.
enum Messages {
    /// `due`: the next one.
    Given { message: Message, left: u32, delay: Duration, due: Instant },
    /// `line`: as much as came of it.
    Lines { input: BufReader<Stdin>, line: Vec<u8>, template: Message, as_json: bool, number: u64 },
}

impl Messages {
    fn of(arguments: &Arguments, properties: &Properties) -> Result<Messages, Failure> {
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
        message.properties.publish().map_err(|error| Failure::configuration(format!("-D publish: {error}")))?;
        if arguments.json || arguments.stdin_line {
            let input = BufReader::new(tokio::io::stdin());
            let as_json = arguments.json;
            return Ok(Messages::Lines { input, line: Vec::new(), template: message, as_json, number: 0 });
        }
        message.payload = match (&arguments.message, &arguments.file) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(file)) => {
                let read = std::fs::read(file);
                read.map_err(|error| Failure::configuration(format!("cannot read {}: {error}", file.display())))?
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
        Ok(Messages::Given { message, left: arguments.repeat, delay, due: Instant::now() })
    }

    /// The next; nothing is lost where this is given up half-way.
    async fn next(&mut self) -> Result<Option<Message>, Failure> {
        match self {
            Messages::Given { message, left, delay, due } => {
                if *left == 0 {
                    return Ok(None);
                }
                tokio::time::sleep_until(*due).await;
                *due = Instant::now() + *delay;
                *left -= 1;
                Ok(Some(message.clone()))
            }
            Messages::Lines { input, line, template, as_json, number } => {
                let read = input.read_until(b'\n', line).await;
                read.map_err(|error| Failure::new(format!("cannot read standard input: {error}")))?;
                let mut line = std::mem::take(line);
                if line.is_empty() {
                    return Ok(None);
                }
                if line.ends_with(b"\n") {
                    line.pop();
                }
                *number += 1;
                match as_json {
                    false => Ok(Some(Message { payload: line, ..template.clone() })),
                    true => parse(&line, template)
                        .map(Some)
                        .map_err(|what| Failure::configuration(format!("standard input:{number}: {what}"))),
                }
            }
        }
    }
}

fn check_topic(topic: &str) -> Result<(), Failure> {
    Topic::parse(topic).map(drop).map_err(|error| Failure::configuration(format!("{topic:?} is no topic: {error}")))
}

/// A line of `lockgate sub --json`; what it does not say is as in `template`.
fn parse(line: &[u8], template: &Message) -> Result<Message, String> {
    let value: serde_json::Value = serde_json::from_slice(line).map_err(|error| format!("this is no JSON: {error}"))?;
    if !value.is_object() {
        return Err("this is no JSON object: {\"topic\": …, \"payload\": …}".to_owned());
    }
    let text = |name: &str| value.get(name).and_then(serde_json::Value::as_str);
    let room = |name: &str, value: &[u8]| fits(name, value).map_err(|failure| failure.message);
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
        let qos = qos.as_u64().and_then(|qos| QoS::from_bits(u8::try_from(qos).ok()?));
        message.qos = qos.ok_or("qos is 0, 1 or 2")?;
    }
    if let Some(retain) = value.get("retain").and_then(serde_json::Value::as_bool) {
        message.retain = retain;
    }
    if value.get("payload-format-indicator").and_then(serde_json::Value::as_u64) == Some(1) {
        message.properties.payload_is_utf8();
    }
    if let Some(text) = text("content-type") {
        room("content-type", text.as_bytes())?;
        message.properties.content_type(text);
    }
    if let Some(text) = text("response-topic") {
        room("response-topic", text.as_bytes())?;
        message.properties.response_topic(text);
    }
    if let Some(data) = text("correlation-data") {
        let data = STANDARD.decode(data).map_err(|error| format!("correlation-data: {error}"))?;
        room("correlation-data", &data)?;
        message.properties.correlation_data(&data);
    }
    if let Some(secs) = value.get("message-expiry-interval") {
        let secs = secs.as_u64().and_then(|secs| u32::try_from(secs).ok());
        message.properties.message_expiry_interval(secs.ok_or("message-expiry-interval is a number of seconds")?);
    }
    for pair in value.get("user-properties").and_then(serde_json::Value::as_array).into_iter().flatten() {
        if let (Some(name), Some(value)) = (pair[0].as_str(), pair[1].as_str()) {
            room("user-properties", name.as_bytes())?;
            room("user-properties", value.as_bytes())?;
            message.properties.user_property(name, value);
        }
    }
    match message.properties.publish() {
        Ok(_) => Ok(message),
        Err(error) => Err(format!("its properties, with those of -D: {error}")),
    }
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
    /// When it last said one.
    spoke: Instant,
    /// PINGREQ after which nothing came.
    unanswered: u32,
    maximum_qos: QoS,
    retain_available: bool,
    /// Bytes of a packet that the broker takes.
    packet_size_max: usize,
}

impl Publisher {
    fn new(connection: Connection, welcome: &Incoming, keep_alive: u16) -> Publisher {
        let mut publisher = Publisher {
            connection,
            window: WINDOW,
            pending: BTreeMap::new(),
            refused: None,
            count: 0,
            quiet: quiet(welcome, keep_alive),
            spoke: Instant::now(),
            unanswered: 0,
            maximum_qos: QoS::ExactlyOnce,
            retain_available: true,
            packet_size_max: PACKET_SIZE_MAX,
        };
        if let Ok(Packet::ConnAck(connack)) = welcome.packet() {
            publisher.window = WINDOW.min(connack.receive_maximum.unwrap_or(u16::MAX).into());
            publisher.maximum_qos = connack.maximum_qos;
            publisher.retain_available = connack.retain_available;
            publisher.packet_size_max =
                connack.maximum_packet_size.map_or(PACKET_SIZE_MAX, |size| PACKET_SIZE_MAX.min(size as usize));
        }
        publisher
    }

    /// Whether the broker takes such a message, by its CONNACK (section 3.2.2.3).
    fn check(&self, message: Message) -> Result<Message, Failure> {
        let refused = |what: String| Err(Failure::new(what).with_code(REFUSED));
        // The fixed header, the topic's length and a packet identifier take 9 bytes at most.
        let mut size = message.payload.len() + message.topic.len() + message.properties.size() + 9;
        if size > self.packet_size_max && size <= PACKET_SIZE_MAX {
            let packet_id = (message.qos != QoS::AtMostOnce).then(|| PacketId::new(1).expect("not 0"));
            size = self.encode(&message, packet_id)?.len();
        }
        if size > self.packet_size_max {
            return refused(format!(
                "a message for {:?} takes a packet of {size} bytes, and the broker takes {} at most (`limits: packet-size-max` there)",
                message.topic, self.packet_size_max
            ));
        }
        if message.qos > self.maximum_qos {
            return refused(format!(
                "the broker takes QoS {} at most, and the message for {:?} has QoS {}: say so with -q",
                self.maximum_qos.bits(),
                message.topic,
                message.qos.bits()
            ));
        }
        if message.retain && !self.retain_available {
            return refused(format!("the broker retains nothing, and the message for {:?} is to be", message.topic));
        }
        Ok(message)
    }

    async fn publish(&mut self, message: &Message) -> Result<(), Failure> {
        while self.pending.len() >= self.window {
            self.wait().await?;
        }
        let packet_id = (message.qos != QoS::AtMostOnce).then(|| self.connection.next_id());
        let bytes = self.encode(message, packet_id)?;
        // A link that takes less than this is as good as none.
        let patience = PATIENCE + Duration::from_secs(bytes.len() as u64 / 16_384);
        match tokio::time::timeout(patience, self.connection.send_bytes(&bytes)).await {
            Ok(sent) => sent.map_err(|error| self.lost(&error))?,
            Err(_) => {
                return Err(Failure::new(format!(
                    "the broker took nothing for {} s; {} message(s) before are not acknowledged",
                    patience.as_secs(),
                    self.pending.len()
                )));
            }
        }
        self.spoke = Instant::now();
        self.count += 1;
        if let Some(packet_id) = packet_id {
            self.pending.insert(packet_id, message.topic.clone());
        }
        Ok(())
    }

    fn encode(&self, message: &Message, packet_id: Option<PacketId>) -> Result<Vec<u8>, Failure> {
        let properties = message.properties.publish();
        let properties = properties.map_err(|error| Failure::configuration(format!("properties: {error}")))?;
        let packet = Packet::Publish(Publish {
            dup: false,
            qos: message.qos,
            retain: message.retain,
            topic: &message.topic,
            packet_id,
            properties: properties.get(),
            payload: &message.payload,
        });
        let mut bytes = Vec::new();
        encode(&mut bytes, &packet, self.connection.version());
        Ok(bytes)
    }

    /// Until something that was published is acknowledged.
    async fn wait(&mut self) -> Result<(), Failure> {
        let (deadline, before) = (Instant::now() + PATIENCE, self.pending.len());
        while self.pending.len() == before {
            if let Ok(event) = tokio::time::timeout_at(deadline, self.event()).await {
                self.react(event?).await?;
                continue;
            }
            let refused = self.refused.as_ref().map(|refused| format!("; before, {refused}")).unwrap_or_default();
            return Err(Failure::new(format!(
                "the broker did not acknowledge {before} message(s) within {} s: whether they arrived is not known; publish them again{refused}",
                PATIENCE.as_secs()
            )));
        }
        Ok(())
    }

    /// What comes next; `None` where there was nothing to say for long. Nothing is lost where this is given up half-way.
    async fn event(&mut self) -> Result<Option<Incoming>, Failure> {
        let received = tokio::select! {
            received = self.connection.receive() => received,
            () = tokio::time::sleep_until(self.spoke + self.quiet) => return Ok(None),
        };
        received.map(Some).map_err(|error| self.lost(&error))
    }

    async fn react(&mut self, event: Option<Incoming>) -> Result<(), Failure> {
        if let Some(incoming) = event {
            self.unanswered = 0;
            return self.take(&incoming).await;
        }
        if self.unanswered >= 2 {
            return Err(Failure::new("the broker does not answer any more (keep alive)"));
        }
        self.unanswered += 1;
        self.spoke = Instant::now();
        self.connection.send(&Packet::PingReq).await.map_err(|error| self.lost(&error))
    }

    async fn take(&mut self, incoming: &Incoming) -> Result<(), Failure> {
        let packet = incoming.packet().map_err(|error| Failure::new(format!("the broker's answer: {error}")))?;
        match packet {
            Packet::PubAck(ack) | Packet::PubComp(ack) => self.done(&ack),
            Packet::PubRec(ack) if ack.reason.is_error() => self.done(&ack),
            Packet::PubRec(ack) => {
                self.connection.release(ack.packet_id).await.map_err(|error| self.lost(&error))?;
            }
            // A session that is taken up (-c) brings what is meant for it.
            Packet::Publish(publish) => {
                if let Some(packet_id) = publish.packet_id {
                    let acknowledged = self.connection.acknowledge(packet_id, publish.qos).await;
                    acknowledged.map_err(|error| self.lost(&error))?;
                }
            }
            Packet::PubRel(ack) => {
                self.connection.complete(ack.packet_id).await.map_err(|error| self.lost(&error))?;
            }
            Packet::Disconnect(disconnect) => return Err(ended(&disconnect)),
            _ => {}
        }
        Ok(())
    }

    fn done(&mut self, ack: &Ack<'_>) {
        let Some(topic) = self.pending.remove(&ack.packet_id) else { return };
        if ack.reason.is_error() && self.refused.is_none() {
            let why = because(ack.reason_string);
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
            self.wait().await?;
        }
        let version = self.connection.version();
        let (refused, count) = (self.refused.take(), self.count);
        let left = self.connection.leave(ReasonCode::Success).await;
        if let Some(refused) = refused {
            return Err(Failure::new(refused).with_code(REFUSED));
        }
        match left {
            // Before MQTT 5 a refusal is nothing but the end of the connection.
            Err(error) if count > 0 || version != Version::V5 => {
                Err(Failure::new(format!("the connection broke before all was sent: {}", describe(&error))))
            }
            _ => Ok(()),
        }
    }
}
