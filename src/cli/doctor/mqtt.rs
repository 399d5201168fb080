//! What the broker says, and round trips at each QoS.

use std::io;
use std::time::{Duration, Instant};

use super::super::dial::{Target, made_up_id};
use super::Examination;
use super::wire::PATIENCE;
use crate::client::{ConnectError, Connection, Way, WayError, describe, is_about_client, tls_error};
use crate::codec::{
    Connect, ConnectProperties, Packet, Publish, PublishProperties, SubscriptionOptions, UserProperties, Version,
    encode_subscription,
};
use crate::pki::CertificateInfo;
use crate::types::{QoS, ReasonCode};

/// A broker on the same continent takes less.
const SLOW: Duration = Duration::from_millis(300);
const TRIP: Duration = Duration::from_secs(5);

async fn connect(target: &Target, version: Version, named: bool) -> Result<(Connection, QoS), ConnectError> {
    let way = target.way().map_err(|failure| ConnectError::Ended(io::Error::other(failure.message)))?;
    let stream = way.open(PATIENCE).await.map_err(|error| match error {
        WayError::Tls { error, .. } => ConnectError::Ended(error),
        other => ConnectError::Ended(io::Error::other(other.to_string())),
    })?;
    let id = made_up_id();
    let connect = Connect {
        version,
        clean_start: true,
        keep_alive: 30,
        properties: ConnectProperties::default(),
        client_id: &id,
        will: None,
        user_name: target.user.as_deref().filter(|_| named),
        password: target.password.as_ref().map(|password| password.as_bytes()).filter(|_| named),
    };
    let (connection, welcome) = Connection::connect(stream, &connect, PATIENCE).await?;
    let maximum_qos = match welcome.packet() {
        Ok(Packet::ConnAck(connack)) => connack.maximum_qos,
        _ => QoS::ExactlyOnce,
    };
    Ok((connection, maximum_qos))
}

/// Whether MQTT answers without TLS, whatever it says.
pub(super) async fn speaks_plain(target: &Target) -> bool {
    let plain = Target { trust: None, ..target.clone() };
    matches!(connect(&plain, Version::V5, false).await, Ok(_) | Err(ConnectError::Refused { .. }))
}

/// Whether somebody without a name may come in.
pub(super) async fn lets_anybody_in(target: &Target) -> bool {
    connect(target, Version::V5, false).await.is_ok()
}

pub(super) async fn examine(target: &Target, topic: Option<&str>, examination: &mut Examination) {
    let began = Instant::now();
    let connected = match connect(target, Version::V5, true).await {
        Err(ConnectError::Refused { reason: ReasonCode::UnsupportedProtocolVersion, .. }) => {
            examination.warn(
                "the broker does not take MQTT 5: it cannot say why it refuses something",
                "a broker of these days takes it; the client has to be set to MQTT 3.1.1 meanwhile",
            );
            connect(target, Version::V311, true).await
        }
        other => other,
    };
    let took = began.elapsed();
    let (connection, maximum_qos) = match connected {
        Ok(connection) => connection,
        Err(error) => return refused(target, &error, examination),
    };
    let who = match (&target.user, target.trust.as_ref().is_some_and(|trust| trust.identity.is_some())) {
        (Some(user), _) => format!("as {user}"),
        (None, true) => "by its certificate".to_owned(),
        (None, false) => "without a name".to_owned(),
    };
    examination.good(format!(
        "the broker lets this client in {who} (MQTT {}, {} ms)",
        connection.version(),
        took.as_millis()
    ));
    if target.user.is_none() && who == "without a name" {
        examination.warn(
            "anybody may come in here, without a name",
            "take `allow-anonymous: true` out of that listener (mosquitto.conf: allow_anonymous false)",
        );
    }
    if took > SLOW {
        slow("to let this client in", took, examination);
    }
    // Another that says nothing: a broker that dies ends it too, one that cuts a connection does not.
    let witness = connect(target, Version::V5, true).await.ok().map(|(connection, _)| connection);
    let mut trips = Trips { connection, maximum_qos, target, topic: String::new(), seen: Seen::default() };
    let given = topic.map(str::to_owned);
    let usual = format!("lockgate-doctor/{}", made_up_id());
    trips.topic = given.clone().unwrap_or(usual);
    let outcome = trips.all(examination).await;
    let narrow = match (&given, name_of(target), trips.seen.denied) {
        // Where an identity may only write below its own name.
        (None, Some(name), true) => Some(format!("{name}/lockgate-doctor")),
        _ => None,
    };
    if let Err(error) = &outcome {
        broke(target, error, witness, examination).await;
    } else if let Some(narrow) = narrow
        && let Ok((connection, maximum_qos)) = connect(target, Version::V5, true).await
    {
        let mut own = Trips { connection, maximum_qos, target, topic: narrow, seen: Seen::default() };
        if own.all(examination).await.is_ok() && !own.seen.denied {
            examination.note(format!(
                "the ACL lets this client write below its own name ({}), and not to {}",
                own.topic, trips.topic
            ));
            return;
        }
    }
    trips.tell_denials(examination);
}

/// As whom the broker takes this client: by its certificate, or else by its user name.
fn name_of(target: &Target) -> Option<String> {
    let identity = target.trust.as_ref().and_then(|trust| trust.identity.as_ref());
    let of_certificate = identity.and_then(|(certificate, _)| CertificateInfo::read(certificate).ok()?.common_name);
    of_certificate.or_else(|| target.user.clone())
}

fn slow(what: &str, took: Duration, examination: &mut Examination) {
    examination.warn(
        format!("slow: the broker took {} ms {what}", took.as_millis()),
        "look at its machine's load and disk (`lockgate status`, `top`), and at the way there (`ping`)",
    );
}

/// What a refusal comes from.
fn refused(target: &Target, error: &ConnectError, examination: &mut Examination) {
    let has_certificate = target.trust.as_ref().is_some_and(|trust| trust.identity.is_some());
    let whom = target.user.as_deref().unwrap_or("NAME");
    let (what, mend) = match error {
        ConnectError::Refused { reason, why } => {
            let said = why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
            let what = format!("CONNACK {reason}{said}");
            match reason {
                ReasonCode::BadUserNameOrPassword => (
                    format!("{what}; {}", target.credentials()),
                    format!("on the broker's machine: `lockgate client list`, and `lockgate client passwd {whom}` sets a new one"),
                ),
                ReasonCode::NotAuthorized if has_certificate && target.user.is_some() => (
                    format!("{what}: the client shows a certificate and a password (of {whom}), and one of them does not admit it: the certificate was revoked or is of another name, or the password is wrong"),
                    "leave one away; on the broker's machine `lockgate client list` and `lockgate ca ledger` say what is good".to_owned(),
                ),
                ReasonCode::NotAuthorized if has_certificate => (
                    format!("{what}: the broker knows the certificate's CA, and does not let this certificate in: it was revoked, its name removed, or the client id is another identity's"),
                    "on the broker's machine: `lockgate client list` and `lockgate ca ledger`; `lockgate client add NAME` lets a name in again".to_owned(),
                ),
                ReasonCode::NotAuthorized if target.password.is_some() => (
                    format!("{what}: {whom} may not come this way: most often it has to come at a higher level (min-level), with TLS or a certificate"),
                    format!("on the broker's machine: `lockgate client show {whom}` shows its level, `lockgate client env {whom} --level mtls` makes a bundle of the highest"),
                ),
                ReasonCode::NotAuthorized => (
                    format!("{what}: the broker wants to know who comes: this client showed neither a right password nor a certificate that admits it"),
                    "come with a bundle (--as NAME, --env FILE), or -u and -P; `lockgate client add NAME` makes one".to_owned(),
                ),
                ReasonCode::ServerBusy | ReasonCode::ServerUnavailable => (
                    format!("{what}: the broker is too busy, or just stopping"),
                    "come again in a while; `lockgate status` on its machine shows how many connections there are, `admission:` in its configuration how many may be".to_owned(),
                ),
                ReasonCode::QuotaExceeded => (
                    format!("{what}: a limit of the broker's is reached (sessions, wrong passwords in a row, or a full disk)"),
                    "after wrong passwords wait a while; its log says which it is, `lockgate status` shows its store".to_owned(),
                ),
                ReasonCode::ClientIdentifierNotValid => {
                    (what, "give the client another id (-i): the broker does not take this one".to_owned())
                }
                _ => (what, "the broker's log says why".to_owned()),
            }
        }
        ConnectError::Ended(error) => match tls_error(error) {
            Some(_) if is_about_client(error) => {
                (format!("client certificate error: {}", describe(error)), mend_certificate(target).to_owned())
            }
            Some(_) => (
                format!("TLS broke: {}", describe(error)),
                "the broker's log says why it ended the connection".to_owned(),
            ),
            None => (
                format!("the broker ends the connection without an answer to CONNECT: {}", describe(error)),
                "its log says why; a wrong port (HTTP, TLS) does that too".to_owned(),
            ),
        },
        other => (other.to_string(), "is it an MQTT broker that listens there?".to_owned()),
    };
    examination.problem(what, mend);
}

/// After a server refused the client's certificate, or missed it.
pub(super) fn mend_certificate(target: &Target) -> &'static str {
    match target.trust.as_ref().is_some_and(|trust| trust.identity.is_some()) {
        true => {
            "compare the certificate's dates and CA with what the broker trusts (`client-ca`); `lockgate client renew NAME` makes a new one"
        }
        false => "name the client's certificate: --cert and --key, or a bundle of level mtls",
    }
}

/// The connection ended in the middle.
async fn broke(target: &Target, error: &io::Error, witness: Option<Connection>, examination: &mut Examination) {
    let began = Instant::now();
    let mut was_gone = match witness {
        Some(mut witness) => tokio::time::timeout(Duration::from_millis(100), witness.receive()).await.is_ok(),
        None => false,
    };
    // A broker that is gone refuses for a while, too.
    let mut is_back = false;
    while began.elapsed() < Duration::from_secs(3) {
        let way = match &target.unix {
            Some(path) => Way::Unix(path.clone()),
            None => Way::Network { host: target.host.clone(), port: target.port, tls: None },
        };
        match way.open(PATIENCE).await {
            Ok(_) => {
                is_back = true;
                break;
            }
            Err(_) => was_gone = true,
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let ms = began.elapsed().as_millis();
    match (was_gone, is_back) {
        (true, true) => examination.problem(
            format!("the broker was gone in the middle of the messages, and back {ms} ms later: it was restarted, or it crashed ({})", describe(error)),
            "its log says which (`journalctl -u lockgate`); a client has to connect again and send what was not acknowledged",
        ),
        (_, false) => examination.problem(
            format!("the broker is gone in the middle of the messages ({})", describe(error)),
            "is it still running? `lockgate status` on its machine",
        ),
        (false, true) => examination.problem(
            format!("the connection was cut in the middle of the messages, and the broker takes new ones ({})", describe(error)),
            "a proxy or a firewall between ends connections, another client has the same id, or the broker refuses a message that way (MQTT 3.1.1): its log says which",
        ),
    }
}

/// What came of the round trips.
#[derive(Default)]
struct Seen {
    denied: bool,
    subscribe: Option<String>,
    publish: Vec<String>,
    quota: bool,
    no_ack: bool,
    doubled: bool,
    arrived_at_0: bool,
    lost_at_0: bool,
}

struct Trips<'a> {
    connection: Connection,
    maximum_qos: QoS,
    target: &'a Target,
    topic: String,
    seen: Seen,
}

impl Trips<'_> {
    async fn all(&mut self, examination: &mut Examination) -> io::Result<()> {
        self.subscribe().await?;
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            if qos > self.maximum_qos {
                examination.note(format!("the broker takes QoS {} at most", self.maximum_qos.bits()));
                break;
            }
            self.trip(qos, examination).await?;
        }
        if self.seen.lost_at_0 && !self.seen.denied && !self.seen.quota {
            examination.note(format!(
                "QoS 0: the message did not come back within {} s, which QoS 0 allows: a broker under load drops such",
                TRIP.as_secs()
            ));
        }
        if self.seen.doubled {
            examination.warn(
                "messages at QoS 1 or 2 come twice, the second time marked DUP",
                "at QoS 1 that is allowed, and a client has to bear it; where it is the rule, acknowledgements do not reach the broker, or a bridge loops",
            );
        }
        if self.seen.no_ack {
            examination.problem(
                format!("the broker does not acknowledge messages at QoS 1 and 2 within {} s (no PUBACK)", TRIP.as_secs()),
                "its disk may not answer (`lockgate status` shows the store), or something between drops packets; a client keeps the message and sends it again",
            );
        }
        Ok(())
    }

    async fn subscribe(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        let filters = [(self.topic.as_str(), SubscriptionOptions::at(QoS::ExactlyOnce))];
        let id = self.connection.next_id();
        encode_subscription(&mut bytes, id, &filters, UserProperties::default(), self.connection.version());
        self.connection.send_bytes(&bytes).await?;
        let deadline = Instant::now() + TRIP;
        while let Some(incoming) = self.next(deadline).await? {
            if let Ok(Packet::SubAck(suback)) = incoming.packet() {
                let refused = suback.reasons.iter().find(|reason| reason.is_error());
                self.seen.subscribe = refused.map(|reason| format!("SUBACK {reason}"));
                self.seen.denied |= refused.is_some();
                break;
            }
        }
        Ok(())
    }

    async fn next(&mut self, deadline: Instant) -> io::Result<Option<crate::client::Incoming>> {
        match tokio::time::timeout_at(deadline.into(), self.connection.receive()).await {
            Ok(incoming) => incoming.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// One message to itself.
    async fn trip(&mut self, qos: QoS, examination: &mut Examination) -> io::Result<()> {
        let began = Instant::now();
        let payload = format!("lockgate doctor, QoS {}", qos.bits());
        let packet_id = (qos != QoS::AtMostOnce).then(|| self.connection.next_id());
        let packet = Packet::Publish(Publish {
            dup: false,
            qos,
            retain: false,
            topic: &self.topic,
            packet_id,
            properties: PublishProperties::default(),
            payload: payload.as_bytes(),
        });
        self.connection.send(&packet).await?;
        let (mut arrived, mut acknowledged) = (self.seen.subscribe.is_some(), qos == QoS::AtMostOnce);
        let mut refused = None;
        let deadline = began + TRIP;
        while !(arrived && acknowledged) && refused.is_none() {
            let Some(incoming) = self.next(deadline).await? else { break };
            let Ok(packet) = incoming.packet() else { continue };
            match packet {
                Packet::Publish(publish) => {
                    self.seen.doubled |= publish.dup;
                    arrived |= publish.payload == payload.as_bytes();
                    if let Some(id) = publish.packet_id {
                        self.connection.acknowledge(id, publish.qos).await?;
                    }
                }
                Packet::PubRel(ack) => {
                    self.connection.complete(ack.packet_id).await?;
                }
                // Of an earlier one, which was given up.
                Packet::PubAck(ack) | Packet::PubRec(ack) | Packet::PubComp(ack)
                    if Some(ack.packet_id) != packet_id => {}
                Packet::PubRec(ack) if !ack.reason.is_error() => {
                    self.connection.release(ack.packet_id).await?;
                }
                Packet::PubAck(ack) | Packet::PubRec(ack) | Packet::PubComp(ack) => {
                    acknowledged = true;
                    refused = ack.reason.is_error().then_some(ack.reason);
                }
                Packet::Disconnect(disconnect) => {
                    return Err(io::Error::other(format!("the broker says {}", disconnect.reason)));
                }
                _ => {}
            }
        }
        let took = began.elapsed();
        let level = qos.bits();
        match refused {
            Some(ReasonCode::NotAuthorized) => {
                self.seen.denied = true;
                self.seen.publish.push(format!("QoS {level}: {}", ReasonCode::NotAuthorized));
            }
            Some(ReasonCode::QuotaExceeded) if !self.seen.quota => {
                self.seen.quota = true;
                let (what, mend) = match self.seen.arrived_at_0 {
                    true => (
                        "the broker cannot keep messages: its disk is full, or the limit of a session's queue or of what is retained is reached",
                        "on the broker's machine: `df -h`, `lockgate status` (store) and its log; room that is made is taken up without a restart",
                    ),
                    false => (
                        "every message is refused: a quota on payloads or messages is reached",
                        "on the broker's machine: `limits:` in its configuration (payload-size-max), and its log",
                    ),
                };
                examination.problem(format!("PUBACK {}: {what}", ReasonCode::QuotaExceeded), mend);
            }
            Some(ReasonCode::QuotaExceeded) => {}
            Some(other) => examination.problem(format!("QoS {level}: the broker refuses the message: {other}"), "its log says why"),
            None if !acknowledged => self.seen.no_ack = true,
            None if !arrived && qos == QoS::AtMostOnce => self.seen.lost_at_0 = true,
            None if !arrived => examination.problem(
                format!("QoS {level}: the message was acknowledged, and did not come back within {} s", TRIP.as_secs()),
                "the ACL may let this client write and not read the topic: `lockgate acl test NAME read TOPIC` on the broker's machine",
            ),
            None if self.seen.subscribe.is_none() => {
                self.seen.arrived_at_0 |= qos == QoS::AtMostOnce;
                examination.good(format!("QoS {level}: there and back in {:.1} ms", took.as_secs_f64() * 1000.0));
                if took > SLOW {
                    slow(&format!("for a message at QoS {level}"), took, examination);
                }
            }
            None => {}
        }
        Ok(())
    }

    /// What the ACL keeps this client from.
    fn tell_denials(&self, examination: &mut Examination) {
        let whom = name_of(self.target).unwrap_or_else(|| "NAME".to_owned());
        if let Some(subscribe) = &self.seen.subscribe {
            examination.problem(
                format!("not authorized: {subscribe} for the subscription {}", self.topic),
                format!("the ACL keeps this client out: `lockgate acl test {whom} read '{}'` says by which line; --topic names one that it may use", self.topic),
            );
        }
        if let Some(publish) = self.seen.publish.first() {
            examination.problem(
                format!("not authorized: publishing to {} is refused ({publish})", self.topic),
                format!("the ACL keeps this client out: `lockgate acl test {whom} write '{}'` says by which line; --topic names one that it may use", self.topic),
            );
        }
    }
}
