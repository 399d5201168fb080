//! One connection's way from accept to the shard, or to a refusal.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use time::OffsetDateTime;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;
use tracing::{debug, info, warn};

use super::handshake::{self, Failure, Knock};
use super::link::{Carrier, Link};
use super::login::Login;
use super::material::ListenerMaterial;
use super::slots::{Pending, Slot};
use super::{Current, Gate, proxy, upgrade};
use crate::auth::{self, Certificate};
use crate::codec::{self, ConnAck, Connect, DecodeError, Packet, Version};
use crate::config::ClientIds;
use crate::handover::{About, Handover, Peer, PeerCertificate, Socket, Words};
use crate::pki::CertificateInfo;
use crate::types::{CertificateId, ClientId, Entrance, Identity, Level, ReasonCode};

/// From so many days before its end on, a client's certificate is spoken of when it comes in.
const EXPIRY_ANNOUNCED_DAYS: i64 = 30;

/// A socket as accepted.
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection that came, and what it came to.
pub(super) struct Arrival {
    pub(super) gate: Arc<Gate>,
    pub(super) current: Arc<Current>,
    pub(super) material: Arc<ListenerMaterial>,
    /// As configured, and as the log names it.
    pub(super) name: Arc<str>,
    pub(super) listener: Arc<str>,
    pub(super) peer: Peer,
    /// One number for all that the log says of this connection.
    pub(super) number: u64,
    /// How to answer it, once its CONNECT is there.
    pub(super) terms: OnceLock<Terms>,
}

/// What a client's CONNECT says of how it can be answered.
pub(super) struct Terms {
    version: Version,
    /// Bytes of a packet.
    pub(super) size_max: usize,
}

/// Why a connection goes no further.
pub(super) enum Stop {
    /// Said nothing, or went away: not worth a line at the usual level.
    Quiet(&'static str),
    Handshake(Failure),
    /// What begins no WebSocket, answered by HTTP.
    Http(upgrade::Refusal),
    /// Answered with a CONNACK, if the version has one for it.
    Refused {
        version: Option<Version>,
        reason: ReasonCode,
        kind: &'static str,
        why: String,
        client: String,
    },
}

impl Arrival {
    pub(super) async fn admit(mut self, mut stream: Stream, slot: Slot, pending: Pending) {
        if let (true, Stream::Tcp(socket)) = (self.material.proxied, &mut stream) {
            match tokio::time::timeout(self.current.admission.connect_timeout, proxy::client(socket)).await {
                Ok(Ok(Some(client))) => self.peer = Peer::Network(client),
                Ok(Ok(None)) => {}
                Ok(Err(_)) | Err(_) => {
                    let why = "it does not begin as a proxy does (`proxy-protocol` of this listener)".to_owned();
                    return self.turn_away(None, Stop::Handshake(Failure { kind: "proxy-protocol", why })).await;
                }
            }
        }
        if let (Words::Mosquitto, Peer::Network(_)) = (self.current.words, self.peer) {
            let port = self.listener.rsplit_once(':').map_or("", |(_, port)| port);
            info!("New connection from {} on port {port}.", self.peer);
        }
        let deadline = self.current.admission.connect_timeout;
        let mut link = None;
        let mut slot = Some(slot);
        let stopped = match tokio::time::timeout(deadline, self.walk(stream, &mut link, &mut slot)).await {
            Ok(Ok(None)) => return,
            Ok(Ok(Some(Visit { head, certificate }))) => {
                if let (Some(link), Some(pages)) = (link, &self.material.pages) {
                    self.serve_pages(link, head, pages, certificate.as_ref(), pending).await;
                }
                return;
            }
            Ok(Err(stop)) => stop,
            // CONNECT came in time; its password's turn did not.
            Err(_) if self.terms.get().is_some() => Stop::Refused {
                version: self.terms.get().map(|terms| terms.version),
                reason: ReasonCode::QuotaExceeded,
                kind: "hashing-busy",
                why:
                    "too many passwords are being checked (admission.hashing-max), or it takes too long to authenticate"
                        .to_owned(),
                client: String::new(),
            },
            Err(_) => Stop::Handshake(Failure {
                kind: "connect-timeout",
                why: format!("no CONNECT within {} s (admission.connect-timeout)", deadline.as_secs()),
            }),
        };
        self.turn_away(link, stopped).await;
    }

    /// Ends with the client let in, or with a visit of one that came by HTTP.
    async fn walk(
        &self,
        stream: Stream,
        held: &mut Option<Link>,
        slot: &mut Option<Slot>,
    ) -> Result<Option<Visit>, Stop> {
        let web = match (&self.material.websocket, &self.material.pages) {
            (Some(_), _) => Some(("WebSocket", "mqtt-on-ws", "a ws:// URL")),
            (None, Some(_)) => Some(("HTTP", "mqtt-on-http", "another port")),
            (None, None) => None,
        };
        let link = match stream {
            Stream::Unix(stream) => held.insert(Carrier::Unix(stream).into()),
            Stream::Tcp(stream) => {
                let knock = handshake::peek(&stream).await.ok().flatten().ok_or(Stop::Quiet("closed"))?;
                let port = self.listener.rsplit_once(':').map_or("", |(_, port)| port);
                let misled = |kind, why: String| Err(Stop::Handshake(Failure { kind, why }));
                match (&self.material.tls, knock) {
                    (None, Knock::Tls) => {
                        return misled(
                            "tls-on-plain",
                            format!("TLS on the plain port {port}: the client needs TLS switched off, or the TLS port"),
                        );
                    }
                    (Some(_), Knock::Mqtt) => {
                        return misled(
                            "plain-on-tls",
                            format!("plain MQTT on the TLS port {port}: the client needs TLS switched on"),
                        );
                    }
                    (None, Knock::Http) if web.is_some() => held.insert(Carrier::Tcp(stream).into()),
                    (None, Knock::Mqtt) if let Some((kind, key, needs)) = web => {
                        let why =
                            format!("bare MQTT on the {kind} port {port}: the client needs {needs}, or the MQTT port");
                        return misled(key, why);
                    }
                    (None, Knock::Other) if let Some((kind, _, _)) = web => {
                        return misled("garbage", format!("no HTTP request on the {kind} port {port}"));
                    }
                    (_, Knock::Http) => return misled("http", format!("HTTP on the MQTT port {port}")),
                    (Some(_), Knock::Other) => {
                        return misled("garbage", format!("neither TLS nor MQTT on port {port}"));
                    }
                    (None, _) => held.insert(Carrier::Tcp(stream).into()),
                    (Some(tls), Knock::Tls) => {
                        let started = Instant::now();
                        let stream = handshake::accept(stream, tls).await.map_err(Stop::Handshake)?;
                        self.gate.stats.handshakes.observe(started.elapsed());
                        held.insert(Carrier::Tls(Box::new(stream)).into())
                    }
                }
            }
        };
        let head = match (&self.material.websocket, &self.material.pages) {
            (Some(rules), _) => link.upgrade(rules, &self.material).await?,
            (None, Some(_)) => Some(Vec::new()),
            (None, None) => None,
        };
        let (certificate, kept) = self.certificate(link)?.unzip();
        if let Some(head) = head {
            return Ok(Some(Visit { head, certificate }));
        }
        let mut bytes = Vec::new();
        let end = self.read_connect(link, &mut bytes).await?;
        let mut rest = bytes.split_off(end);
        let found = codec::frame(&bytes, end).ok().flatten().expect("found when it was read");
        let connect = match codec::decode(&bytes, found, Version::V5) {
            Ok(Packet::Connect(connect)) => connect,
            Ok(_) => unreachable!("read_connect takes nothing else"),
            Err(error) => return Err(undecodable(&bytes[found.body_start..found.end], error)),
        };
        let size_max = connect.properties.maximum_packet_size.unwrap_or(u32::MAX);
        let _ = self.terms.set(Terms { version: connect.version, size_max: size_max as usize });
        let version = connect.version;
        if self.current.busy > 0 && self.gate.turned_away.fetch_add(1, Ordering::Relaxed) < self.current.busy {
            return Err(Stop::Refused {
                version: Some(version),
                reason: ReasonCode::ServerBusy,
                kind: "busy",
                why: "the broker is too busy, on purpose".to_owned(),
                client: describe(&connect),
            });
        }
        let takes = match version {
            Version::V31 => self.material.versions[0],
            Version::V311 => self.material.versions[1],
            Version::V5 => self.material.versions[2],
        };
        if !takes {
            return Err(Stop::Refused {
                version: Some(version),
                reason: ReasonCode::UnsupportedProtocolVersion,
                kind: "version",
                why: format!("this listener does not take MQTT {version}"),
                client: describe(&connect),
            });
        }
        let chosen = match self.material.client_ids.from_user_name {
            true => None,
            false => Some(client_id(&connect, &self.material.client_ids)?),
        };
        let proof = match connect.properties.authentication_method {
            None => None,
            Some(method) => Some(self.exchange(link, &connect, method, &mut rest).await?),
        };
        loop {
            let current = self.gate.current.load_full();
            let material = self.material_now(&current, certificate.as_ref())?;
            let proved = proof.as_ref().map(|proof| &proof.identity);
            let (identity, level) = self
                .identify(
                    Login {
                        certificate: certificate.as_ref(),
                        user_name: connect.user_name,
                        password: connect.password,
                        proved,
                    },
                    &material,
                    &current.directory,
                )
                .await
                .map_err(|refusal| Stop::Refused {
                    version: Some(version),
                    reason: refusal.reason(),
                    kind: refusal.kind(),
                    why: refusal.to_string(),
                    client: describe(&connect),
                })?;
            // Who it was proved to be, and not who it says: certificates and their subjects count too.
            let (client, assigned) = match (&chosen, identity.as_ref().and_then(|name| ClientId::new(name.as_str()))) {
                (Some(chosen), _) => chosen.clone(),
                (None, Some(client)) => (client, connect.client_id.is_empty()),
                (None, None) => {
                    return Err(Stop::Refused {
                        version: Some(version),
                        reason: ReasonCode::NotAuthorized,
                        kind: "client-id",
                        why: "this listener takes the client id from the user name, and it has none".to_owned(),
                        client: describe(&connect),
                    });
                }
            };
            if let Some(prefix) = &self.material.client_ids.required_prefix
                && !client.as_str().starts_with(&**prefix)
            {
                return Err(Stop::Refused {
                    version: Some(version),
                    reason: ReasonCode::NotAuthorized,
                    kind: "client-id",
                    why: format!("its client id does not begin with {prefix:?}"),
                    client: describe(&connect),
                });
            }
            let _swap = self.gate.swap.read().unwrap_or_else(PoisonError::into_inner);
            // Somebody may have been removed, or the listener's rules changed, meanwhile: ask again.
            if Arc::ptr_eq(&current, &self.gate.current.load()) {
                let (clean_start, keep_alive_secs) = (connect.clean_start, connect.keep_alive);
                drop(connect);
                bytes.append(&mut rest);
                let authentication_data = proof.and_then(|proof| proof.data);
                let ready = Ready {
                    entrance: material.entrance.clone(),
                    bytes,
                    client,
                    assigned,
                    identity,
                    authentication_data,
                    level,
                    version,
                    clean_start,
                    keep_alive_secs,
                    certificate: certificate.zip(kept),
                };
                let (link, slot) = held.take().zip(slot.take()).expect("put there on the way");
                self.hand_over(link, ready, slot);
                return Ok(None);
            }
        }
    }

    /// What the listener demands now; it may have been reloaded since this connection came.
    fn material_now(
        &self,
        current: &Current,
        certificate: Option<&Certificate>,
    ) -> Result<Arc<ListenerMaterial>, Stop> {
        let Some(material) = current.listeners.get(&*self.name) else {
            return Err(Stop::Quiet("its listener is gone"));
        };
        if certificate.is_some() && !Arc::ptr_eq(material, &self.material) {
            // Verified by what was trusted then.
            return Err(Stop::Quiet("its certificate was verified before a reload: it has to come again"));
        }
        Ok(material.clone())
    }

    fn certificate(&self, link: &Link) -> Result<Option<(Certificate, PeerCertificate)>, Stop> {
        let Carrier::Tls(stream) = &link.carrier else { return Ok(None) };
        let (_, session) = stream.get_ref();
        let chain = session.peer_certificates().unwrap_or_default();
        let Some(leaf) = chain.first() else { return Ok(None) };
        let info = CertificateInfo::parse(leaf)
            .map_err(|error| Stop::Handshake(Failure { kind: "client-certificate", why: error.to_string() }))?;
        // A resumed TLS session was verified when it began: it may have expired since.
        let now = OffsetDateTime::now_utc();
        if info.not_after <= now || info.not_before > now {
            let why = handshake::EXPIRED.to_owned();
            return Err(Stop::Handshake(Failure { kind: "client-certificate", why }));
        }
        let own = self.current.own_issuers.contains(&info.issuer);
        let between = chain[1..].iter().filter_map(|der| CertificateInfo::parse(der).ok());
        let id = |info: &CertificateInfo| CertificateId::new(&info.issuer, &info.serial);
        let kept = PeerCertificate {
            chain: std::iter::once(id(&info)).chain(between.map(|info| id(&info))).collect(),
            expires: info.not_after.into(),
        };
        Ok(Some((Certificate { common_name: info.common_name, subject: info.subject, serial: info.serial, own }, kept)))
    }

    /// Reads more of what the client sends; fails when it has gone.
    pub(super) async fn read_more(&self, link: &mut Link, bytes: &mut Vec<u8>) -> Result<(), Stop> {
        link.read_more(bytes, &self.material).await
    }

    /// Reads until CONNECT is there whole; says where it ends.
    async fn read_connect(&self, link: &mut Link, bytes: &mut Vec<u8>) -> Result<usize, Stop> {
        let max = self.current.admission.connect_size_max;
        loop {
            if let Some(&first) = bytes.first()
                && first != 0x10
            {
                let kind = "no-connect";
                return Err(Stop::Handshake(Failure { kind, why: "the first packet is no CONNECT".to_owned() }));
            }
            match codec::frame(bytes, max) {
                Ok(Some(found)) => return Ok(found.end),
                Ok(None) => {}
                Err(error @ DecodeError::TooLarge { .. }) => {
                    let why = format!("{error} for CONNECT (admission.connect-size-max)");
                    let version = version_of(bytes);
                    let reason = ReasonCode::PacketTooLarge;
                    return Err(Stop::Refused { version, reason, kind: "connect-size", why, client: String::new() });
                }
                Err(error) => return Err(Stop::Handshake(Failure { kind: "garbage", why: error.to_string() })),
            }
            self.read_more(link, bytes).await?;
        }
    }

    /// That a client's certificate is near its end, for it and for the log.
    fn notice(&self, certificate: &Certificate, kept: &PeerCertificate) -> Option<String> {
        let expires = OffsetDateTime::from(kept.expires);
        let days = (expires - OffsetDateTime::now_utc()).whole_days();
        if days >= EXPIRY_ANNOUNCED_DAYS {
            return None;
        }
        let (date, subject) = (expires.date(), &certificate.subject);
        let name = certificate.common_name.as_deref().filter(|_| certificate.own).map(auth::cut);
        let mend = name.map_or_else(String::new, |name| {
            format!(": `lockgate client renew {name:?}` makes a new one, unless it renews itself")
        });
        warn!(
            id = self.number,
            kind = "certificate-expires",
            "the certificate {:?} expires in {days} days, on {date}{mend}",
            auth::cut(subject)
        );
        Some(format!("your certificate expires in {days} days, on {date}"))
    }

    fn hand_over(&self, link: Link, ready: Ready, slot: Slot) {
        let (socket, tls) = match link.carrier {
            Carrier::Tcp(stream) => (stream.into_std().map(Socket::Tcp), None),
            Carrier::Unix(stream) => (stream.into_std().map(Socket::Unix), None),
            Carrier::Tls(stream) => match *stream {
                TlsStream::Server(stream) => {
                    let (stream, session) = stream.into_inner();
                    (stream.into_std().map(Socket::Tcp), Some(Box::new(session)))
                }
                TlsStream::Client(_) => unreachable!("this side is the server"),
            },
        };
        let socket = match socket {
            Ok(socket) => socket,
            Err(error) => return warn!(address = %self.peer, "cannot take over a connection: {error}"),
        };
        if let Some(identity) = &ready.identity {
            self.gate.seen.note(identity, ready.level, &self.peer, OffsetDateTime::now_utc());
        }
        let shown = ready.certificate.as_ref();
        let notice = shown.and_then(|(certificate, kept)| self.notice(certificate, kept));
        (self.gate.deliver)(Handover {
            socket,
            tls,
            web: link.web,
            bytes: ready.bytes,
            client: ready.client,
            assigned: ready.assigned,
            identity: ready.identity,
            authentication_data: ready.authentication_data,
            notice,
            entrance: ready.entrance,
            about: About {
                number: self.number,
                peer: self.peer,
                listener: self.listener.clone(),
                version: ready.version,
                level: ready.level,
                clean_start: ready.clean_start,
                keep_alive_secs: ready.keep_alive_secs,
                words: self.current.words,
                certificate: ready.certificate.map(|(_, kept)| Box::new(kept)),
                since: SystemTime::now(),
            },
            slot: Box::new(slot),
        });
    }

    async fn turn_away(&self, link: Option<Link>, stop: Stop) {
        let (address, listener, id) = (self.peer, &*self.listener, self.number);
        let mut answer = Vec::new();
        match stop {
            Stop::Quiet(what) => {
                self.gate.stats.refuse("closed-early");
                debug!(id, %address, listener, "{what}");
            }
            Stop::Handshake(Failure { kind, why }) => {
                self.gate.stats.refuse(kind);
                warn!(id, %address, listener, kind, "client at {} refused: {why}", self.host());
            }
            Stop::Http(refusal) => {
                self.gate.stats.refuse("websocket");
                let why = match refusal.status.as_u16() {
                    403 => format!("{} (`origins:` of this listener)", refusal.why),
                    _ => refusal.why.to_owned(),
                };
                warn!(id, %address, listener, kind = "websocket", "refused with HTTP {}: {why}", refusal.status.as_u16());
                answer = refusal.response();
            }
            Stop::Refused { version, reason, kind, why, client } => {
                self.gate.stats.refuse(kind);
                if self.current.words == Words::Mosquitto && reason == ReasonCode::NotAuthorized {
                    info!("Client <unknown> disconnected, not authorised.");
                }
                warn!(id, %address, listener, kind, "refused{client}: {why} ({reason})");
                if let Some(version) = version {
                    let size_max = self.terms.get().map_or(usize::MAX, |terms| terms.size_max);
                    codec::encode(&mut answer, &Packet::ConnAck(Box::new(ConnAck::new(reason))), version);
                    // [MQTT-3.1.2-24]
                    if answer.len() > size_max {
                        answer.clear();
                    }
                }
            }
        }
        if let Some(link) = link {
            link.leave(answer).await;
        }
    }

    fn host(&self) -> String {
        match self.peer {
            Peer::Network(address) => address.ip().to_canonical().to_string(),
            Peer::Unix => "a unix socket".to_owned(),
        }
    }
}

/// Somebody comes by HTTP, and for no WebSocket.
struct Visit {
    /// What was read of the first request.
    head: Vec<u8>,
    certificate: Option<Certificate>,
}

/// What admission found out.
struct Ready {
    entrance: Arc<Entrance>,
    bytes: Vec<u8>,
    client: ClientId,
    assigned: bool,
    identity: Option<Identity>,
    authentication_data: Option<Vec<u8>>,
    level: Level,
    version: Version,
    clean_start: bool,
    keep_alive_secs: u16,
    certificate: Option<(Certificate, PeerCertificate)>,
}

/// ` client "c" user "u"`, escaped: a peer's text.
pub(super) fn describe(connect: &Connect<'_>) -> String {
    let user = connect.user_name.map(|name| format!(" user {:?}", auth::cut(name))).unwrap_or_default();
    format!(" client {:?}{user}", auth::cut(connect.client_id))
}

fn version_of(bytes: &[u8]) -> Option<Version> {
    let start = 1 + bytes.iter().skip(1).position(|byte| byte & 0x80 == 0)? + 1;
    match codec::connect_level(bytes.get(start..)?) {
        Ok(("MQTT", 5)) => Some(Version::V5),
        Ok(("MQTT", 4)) => Some(Version::V311),
        Ok(("MQIsdp", 3)) => Some(Version::V31),
        _ => None,
    }
}

/// A CONNECT that cannot be decoded: an unknown version is told so in the words of 3.1.1, which
/// every client reads ([MQTT-3.1.2-2] of both); anything else of MQTT 5 is answered with its reason.
fn undecodable(body: &[u8], error: DecodeError) -> Stop {
    let version = match error {
        DecodeError::ProtocolLevel(_) => Some(Version::V311),
        // [MQTT-3.1.2-1] of 3.1.1: another protocol is not answered.
        DecodeError::ProtocolName => None,
        _ => codec::connect_level(body).ok().filter(|level| *level == ("MQTT", 5)).map(|_| Version::V5),
    };
    Stop::Refused {
        version,
        reason: error.reason(),
        kind: "bad-connect",
        why: format!("its CONNECT is not valid: {error}"),
        client: String::new(),
    }
}

/// As sent, or made up where it may be empty; says which.
fn client_id(connect: &Connect<'_>, rules: &ClientIds) -> Result<(ClientId, bool), Stop> {
    let refused = |reason, why: &str| Stop::Refused {
        version: Some(connect.version),
        reason,
        kind: "client-id",
        why: why.to_owned(),
        client: describe(connect),
    };
    if let Some(client) = ClientId::new(connect.client_id) {
        return Ok((client, false));
    }
    if !rules.may_be_empty {
        return Err(refused(
            ReasonCode::ClientIdentifierNotValid,
            "its client id is empty, which this listener does not allow",
        ));
    }
    // [MQTT-3.1.3-7], [MQTT-3.1.3-8] of 3.1.1: an empty one needs a clean session; 3.1 has none.
    let allowed = match connect.version {
        Version::V5 => true,
        Version::V311 => connect.clean_start,
        Version::V31 => false,
    };
    if !allowed {
        return Err(refused(
            ReasonCode::ClientIdentifierNotValid,
            "its client id is empty, and it asks for a session to be kept",
        ));
    }
    let mut random = [0; 12];
    getrandom::fill(&mut random).expect("the kernel's random generator");
    let made = format!("{}{}", rules.prefix, URL_SAFE_NO_PAD.encode(random));
    Ok((ClientId::new(&made).expect("not empty"), true))
}
