//! `lockgate sub`: what any broker has to tell.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{ArgAction, Args};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior};

use super::dial::{Dial, PATIENCE, Properties, REFUSED, Session, TIMED_OUT, ended, quiet};
use super::{Failure, site};
use crate::client::{Connection, because, describe};
use crate::codec::{Packet, Publish, SubscriptionOptions, Version, encode_subscription};
use crate::types::{Filter, PacketId, QoS, ReasonCode, RetainHandling};

#[derive(Args)]
#[command(
    after_help = "Examples:\n  lockgate sub --as alice -t 'pumps/#' -v\n  lockgate sub --env mqtt.env -t pumps/7/level --count 1 --timeout 10\n  lockgate sub --as alice -t 'pumps/#' --json | jq .payload\n\nExit codes: 0 as many came as were wanted, or it was ended by Ctrl-C; 1 no connection, or it broke; 2 the command\nline; 3 the broker refused the client or a subscription; 27 the time was over before."
)]
pub(super) struct Arguments {
    /// The topic filter (repeatable)
    #[arg(short = 't', long, value_name = "FILTER", required = true)]
    topic: Vec<String>,
    /// The highest QoS to receive at
    #[arg(short = 'q', long, value_name = "QOS", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: u8,
    /// End after so many messages
    #[arg(short = 'C', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so many seconds: with exit code 27, unless --count was reached or there is none
    #[arg(short = 'W', long, value_name = "SECONDS")]
    timeout: Option<f64>,
    /// Print the topic before each payload
    #[arg(short = 'v', long, conflicts_with = "json")]
    verbose: bool,
    /// Print each message as a line of JSON: received, topic, payload (or payload-base64), qos, retain, properties by their names (correlation-data in base64)
    #[arg(long)]
    json: bool,
    /// Print no newline behind a payload
    #[arg(short = 'N', conflicts_with = "json")]
    no_newline: bool,
    /// Not what is retained
    #[arg(short = 'R', long)]
    no_retained: bool,
    /// Only what is retained: end when something else comes
    #[arg(long, conflicts_with = "no_retained")]
    retained_only: bool,
    /// Not what this very client publishes (MQTT 5)
    #[arg(long)]
    no_local: bool,
    #[command(flatten)]
    dial: Dial,
    #[command(flatten)]
    session: Session,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    for filter in &arguments.topic {
        Filter::parse(filter)
            .map_err(|error| Failure::configuration(format!("{filter:?} is no topic filter: {error}")))?;
    }
    let deadline = match arguments.timeout.map(Duration::try_from_secs_f64) {
        None => None,
        Some(Ok(timeout)) => Some(timeout),
        Some(Err(_)) => return Err(Failure::configuration("--timeout is a number of seconds")),
    };
    let target = arguments.dial.target()?;
    let properties = arguments.session.properties()?;
    site::runtime().block_on(async {
        let stop = |kind| signal(kind).map_err(|error| Failure::new(format!("cannot take signals: {error}")));
        let mut stops = (stop(SignalKind::interrupt())?, stop(SignalKind::terminate())?);
        let deadline = deadline.map(|timeout| Instant::now() + timeout);
        let begun = async {
            let (mut connection, welcome) = arguments.session.open(&target, &properties).await?;
            let early = subscribe(&mut connection, arguments, &properties).await?;
            let quiet = quiet(&welcome, arguments.session.keepalive);
            Ok::<_, Failure>((Listener { connection, arguments, count: 0, unreleased: BTreeSet::new(), quiet }, early))
        };
        let (mut listener, early) = tokio::select! {
            begun = begun => begun?,
            () = over(deadline) => {
                let secs = arguments.timeout.unwrap_or_default();
                return Err(Failure::new(format!("the broker did not take the subscription within {secs} s")).with_code(TIMED_OUT));
            }
            _ = stops.0.recv() => return Ok(()),
            _ = stops.1.recv() => return Ok(()),
        };
        let ended = listener.listen(early, deadline, &mut stops).await;
        // Whatever it was, the broker is told.
        drop(listener.connection.leave(ReasonCode::Success).await);
        ended
    })
}

/// Subscribes; messages that came before the SUBACK come along (section 3.8.4 allows them).
async fn subscribe(
    connection: &mut Connection,
    arguments: &Arguments,
    properties: &Properties,
) -> Result<Vec<crate::client::Incoming>, Failure> {
    let options = SubscriptionOptions {
        qos: QoS::from_bits(arguments.qos).expect("clap takes no other"),
        no_local: arguments.no_local,
        retain_as_published: false,
        retain_handling: match arguments.no_retained {
            true => RetainHandling::DoNotSend,
            false => RetainHandling::SendAtSubscribe,
        },
    };
    let filters: Vec<(&str, SubscriptionOptions)> =
        arguments.topic.iter().map(|filter| (filter.as_str(), options)).collect();
    let mut bytes = Vec::new();
    let version = connection.version();
    encode_subscription(&mut bytes, connection.next_id(), &filters, properties.subscribe.user_properties(), version);
    connection.send_bytes(&bytes).await.map_err(broke)?;
    let mut early = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let received = tokio::time::timeout_at(deadline, connection.receive()).await;
        let incoming = received
            .map_err(|_| Failure::new(format!("the broker does not answer SUBSCRIBE within {} s", PATIENCE.as_secs())))?
            .map_err(broke)?;
        match incoming.packet().map_err(Failure::new)? {
            Packet::SubAck(suback) => {
                let refused = arguments.topic.iter().zip(&suback.reasons).find(|(_, reason)| reason.is_error());
                if let Some((filter, reason)) = refused {
                    let why = because(suback.reason_string);
                    let what = format!(
                        "the broker refuses the subscription {filter:?}: {reason}{why}; on the broker's machine `lockgate acl test NAME read TOPIC` says by which line"
                    );
                    return Err(Failure::new(what).with_code(REFUSED));
                }
                return Ok(early);
            }
            Packet::Disconnect(disconnect) => return Err(ended(&disconnect)),
            _ => early.push(incoming),
        }
    }
}

fn broke(error: std::io::Error) -> Failure {
    Failure::new(format!("the connection broke: {}", describe(&error)))
}

async fn over(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

struct Listener<'a> {
    connection: Connection,
    arguments: &'a Arguments,
    count: u64,
    /// Messages at QoS 2 that came and are not released yet: one that comes again is the same (section 4.3.3).
    unreleased: BTreeSet<PacketId>,
    /// PINGREQ is due after so long.
    quiet: Duration,
}

/// What a packet meant.
enum Turn {
    Goes,
    Ends,
}

impl Listener<'_> {
    async fn listen(
        &mut self,
        early: Vec<crate::client::Incoming>,
        deadline: Option<Instant>,
        stops: &mut (Signal, Signal),
    ) -> Result<(), Failure> {
        let (interrupt, terminate) = stops;
        for incoming in early {
            if let Turn::Ends = self.take(&incoming).await? {
                return Ok(());
            }
        }
        let mut ping = tokio::time::interval(self.quiet);
        // After a time in which nobody read what is printed, an answer needs its time too.
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ping.tick().await;
        let mut unanswered = 0;
        loop {
            tokio::select! {
                received = self.connection.receive() => {
                    unanswered = 0;
                    let incoming = received.map_err(broke)?;
                    if let Turn::Ends = self.take(&incoming).await? {
                        return Ok(());
                    }
                }
                _ = ping.tick() => {
                    if unanswered >= 2 {
                        return Err(Failure::new("the broker does not answer any more (keep alive)"));
                    }
                    unanswered += 1;
                    self.connection.send(&Packet::PingReq).await.map_err(broke)?;
                }
                () = over(deadline) => {
                    return match self.arguments.count {
                        Some(count) => Err(Failure::new(format!(
                            "{} of {count} messages came within {} s",
                            self.count,
                            self.arguments.timeout.unwrap_or_default()
                        ))
                        .with_code(TIMED_OUT)),
                        None => Ok(()),
                    };
                }
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
            }
        }
    }

    async fn take(&mut self, incoming: &crate::client::Incoming) -> Result<Turn, Failure> {
        match incoming.packet().map_err(Failure::new)? {
            Packet::Publish(publish) => {
                if self.arguments.retained_only && !publish.retain {
                    return Ok(Turn::Ends);
                }
                let is_again = publish.qos == QoS::ExactlyOnce
                    && publish.packet_id.is_some_and(|packet_id| !self.unreleased.insert(packet_id));
                let hidden = is_again || (self.arguments.no_retained && publish.retain);
                if !hidden {
                    match self.print(&publish) {
                        Ok(()) => {}
                        // Nobody reads it any more.
                        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Turn::Ends),
                        Err(error) => return Err(Failure::new(format!("cannot print a message: {error}"))),
                    }
                }
                if let Some(packet_id) = publish.packet_id {
                    self.connection.acknowledge(packet_id, publish.qos).await.map_err(broke)?;
                }
                self.count += u64::from(!hidden);
                if self.arguments.count.is_some_and(|count| self.count >= count) {
                    self.settle(publish.packet_id, publish.qos).await;
                    return Ok(Turn::Ends);
                }
            }
            Packet::PubRel(ack) => {
                self.unreleased.remove(&ack.packet_id);
                self.connection.complete(ack.packet_id).await.map_err(broke)?;
            }
            Packet::Disconnect(disconnect) => return Err(ended(&disconnect)),
            _ => {}
        }
        Ok(Turn::Goes)
    }

    /// Finishes the exchange of the last message at QoS 2, or it would come again.
    async fn settle(&mut self, packet_id: Option<PacketId>, qos: QoS) {
        if qos != QoS::ExactlyOnce {
            return;
        }
        let settled = async {
            while let Ok(incoming) = self.connection.receive().await {
                let Ok(Packet::PubRel(ack)) = incoming.packet() else { continue };
                if self.connection.complete(ack.packet_id).await.is_err() || Some(ack.packet_id) == packet_id {
                    return;
                }
            }
        };
        drop(tokio::time::timeout(Duration::from_secs(2), settled).await);
    }

    fn print(&self, publish: &Publish<'_>) -> io::Result<()> {
        let mut out = std::io::stdout().lock();
        let mut print = || {
            if self.arguments.json {
                return writeln!(out, "{}", as_json(publish, self.connection.version())).and_then(|()| out.flush());
            }
            if self.arguments.verbose {
                write!(out, "{} ", publish.topic)?;
            }
            out.write_all(publish.payload)?;
            if !self.arguments.no_newline {
                out.write_all(b"\n")?;
            }
            out.flush()
        };
        print()
    }
}

/// As `lockgate pub --json` takes it.
fn as_json(publish: &Publish<'_>, version: Version) -> Value {
    let now = OffsetDateTime::from(SystemTime::now());
    let mut value = json!({
        "received": now.format(&Rfc3339).unwrap_or_default(),
        "topic": publish.topic,
        "qos": publish.qos.bits(),
        "retain": publish.retain,
    });
    match str::from_utf8(publish.payload) {
        Ok(text) => value["payload"] = text.into(),
        Err(_) => value["payload-base64"] = STANDARD.encode(publish.payload).into(),
    }
    if publish.dup {
        value["dup"] = true.into();
    }
    if version != Version::V5 {
        return value;
    }
    let properties = &publish.properties;
    if properties.payload_is_utf8 {
        value["payload-format-indicator"] = 1.into();
    }
    if let Some(secs) = properties.message_expiry_interval {
        value["message-expiry-interval"] = secs.into();
    }
    for (name, text) in [("content-type", properties.content_type()), ("response-topic", properties.response_topic())] {
        if let Some(text) = text {
            value[name] = text.into();
        }
    }
    if let Some(data) = properties.correlation_data() {
        value["correlation-data"] = STANDARD.encode(data).into();
    }
    let pairs: Vec<Value> = properties.user_properties().iter().map(|(name, value)| json!([name, value])).collect();
    if !pairs.is_empty() {
        value["user-properties"] = pairs.into();
    }
    value
}
