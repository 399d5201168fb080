//! Where devices get their certificates: EST (RFC 7030) and a plain JSON form, over HTTPS.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Extension, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;
use tracing::{error, info, warn};

use super::{Anew, Reload};
use crate::gate::network_of;
use crate::pki;

/// What issues certificates. Its work touches files: it is called where that may block.
pub trait Desk: Send + Sync {
    /// The CA's certificates, PEM.
    fn cas(&self) -> Result<String, Denied>;

    /// A first certificate for `name`, who shows a token.
    fn enrol(&self, name: &str, token: &str, request: &[u8]) -> Result<Certified, Denied>;

    /// Another certificate for who shows its current one (DER).
    fn reenrol(&self, current: &[u8], request: &[u8]) -> Result<Certified, Denied>;
}

/// A certificate that was issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Certified {
    pub name: String,
    /// PEM, as is `ca`.
    pub certificate: String,
    pub ca: String,
    /// Where MQTT over TLS is.
    pub port: Option<u16>,
}

/// Why there is no certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The token, or the certificate that was shown.
    Credentials(String),
    /// What was asked for.
    Request(String),
    /// Not the client's fault.
    Unavailable(String),
}

/// What is served, and by whom.
pub struct Enrolment {
    pub desk: Arc<dyn Desk>,
    pub reload: Reload,
    /// Swapped by a reload.
    pub tls: Arc<ArcSwap<ServerConfig>>,
    failures: Failures,
    /// One certificate is issued after the other.
    desk_is_free: tokio::sync::Mutex<()>,
}

/// Who is on the other side.
#[derive(Clone)]
struct Peer {
    address: SocketAddr,
    /// Verified, DER.
    certificate: Option<Arc<[u8]>>,
}

/// Connections at once, and of one network.
const CONNECTIONS_MAX: usize = 64;
const CONNECTIONS_PER_NETWORK_MAX: usize = 16;
/// For the handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// For the handshake and all requests together.
const CONNECTION_LIFE: Duration = Duration::from_secs(30);
/// No request is larger.
const REQUEST_MAX: usize = 64 * 1024;

impl Enrolment {
    pub fn new(desk: Arc<dyn Desk>, reload: Reload, tls: Arc<ArcSwap<ServerConfig>>) -> Arc<Enrolment> {
        let (failures, desk_is_free) = (Failures::default(), tokio::sync::Mutex::default());
        Arc::new(Enrolment { desk, reload, tls, failures, desk_is_free })
    }

    /// Serves until it is dropped; gives where.
    pub fn serve(
        self: Arc<Self>,
        socket: std::net::TcpListener,
    ) -> std::io::Result<(SocketAddr, impl Future<Output = ()> + use<>)> {
        let socket = tokio::net::TcpListener::from_std(socket)?;
        let address = socket.local_addr()?;
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let networks = Arc::new(Networks::default());
        let router = router(self.clone());
        Ok((address, async move {
            loop {
                let place = places.clone().acquire_owned().await.expect("never closed");
                let (stream, address) = match socket.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        warn!("enrolment cannot accept a connection: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                // One network alone cannot keep the others out.
                let Some(share) = networks.clone().enter(address.ip()) else { continue };
                let (tls, router) = (self.tls.load_full(), router.clone());
                tokio::spawn(async move {
                    let _places = (place, share);
                    drop(tokio::time::timeout(CONNECTION_LIFE, one(stream, address, tls, router)).await);
                });
            }
        }))
    }
}

/// Connections by network.
#[derive(Default)]
struct Networks(Mutex<HashMap<IpAddr, usize>>);

/// A place of a network, given back when dropped.
struct Share(Arc<Networks>, IpAddr);

impl Networks {
    fn enter(self: Arc<Self>, address: IpAddr) -> Option<Share> {
        let network = network_of(address);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(network).or_default();
        if *count >= CONNECTIONS_PER_NETWORK_MAX {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Share(self, network))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

/// One connection, from its handshake on.
async fn one(stream: tokio::net::TcpStream, address: SocketAddr, tls: Arc<ServerConfig>, router: Router) {
    let accepted = tokio::time::timeout(HANDSHAKE, tokio_rustls::TlsAcceptor::from(tls).accept(stream)).await;
    let Ok(Ok(stream)) = accepted else { return };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).map(|der| Arc::from(&**der));
    let service = TowerToHyperService::new(router.layer(Extension(Peer { address, certificate })));
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10));
    let Ok(parts) = http.serve_connection(TokioIo::new(stream), service).without_shutdown().await else { return };
    linger(parts.io.into_inner()).await;
}

/// What a client still sends after its answer is read for so long, and so much of it.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_MAX: u64 = 1024 * 1024;

/// Ends a connection in order. Bytes that nobody reads would reset it, and take along an answer that is on its way:
/// a request that is refused before its end would look like a broken connection (RFC 9112 section 9.6).
async fn linger(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    drop(stream.shutdown().await);
    let rest = async { tokio::io::copy(&mut stream.take(LINGER_MAX), &mut tokio::io::sink()).await };
    drop(tokio::time::timeout(LINGER, rest).await);
}

fn router(enrolment: Arc<Enrolment>) -> Router {
    Router::new()
        .route("/.well-known/est/cacerts", get(cacerts))
        .route("/.well-known/est/simpleenroll", post(simpleenroll))
        .route("/.well-known/est/simplereenroll", post(simplereenroll))
        // RFC 7030 section 4.5.2: nothing is asked of a request.
        .route("/.well-known/est/csrattrs", get(async || StatusCode::NO_CONTENT))
        .route("/ca.crt", get(ca))
        .route("/enroll", post(enroll))
        .route("/reenroll", post(reenroll))
        .layer(DefaultBodyLimit::max(REQUEST_MAX))
        .with_state(enrolment)
}

type Shared = State<Arc<Enrolment>>;

async fn ca(State(enrolment): Shared) -> Response {
    match enrolment.cas().await {
        Ok(pem) => ([(header::CONTENT_TYPE, "application/x-pem-file")], pem).into_response(),
        Err(denied) => refusal(&denied, false),
    }
}

/// RFC 7030 section 4.1.
async fn cacerts(State(enrolment): Shared) -> Response {
    enrolment.cas().await.map_or_else(|denied| refusal(&denied, true), |pem| pkcs7(&pem))
}

/// RFC 7030 section 4.2.1: who shows a token by HTTP Basic, the device's name before it.
async fn simpleenroll(
    State(enrolment): Shared,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let outcome = match basic(&headers) {
        Some((name, token)) => enrolment.enrol(&peer, &name, &token, request_of(&body)).await,
        None => Err(Denied::Credentials("HTTP Basic with the device's name and its token is expected".to_owned())),
    };
    outcome.map_or_else(|denied| refusal(&denied, true), |certified| pkcs7(&certified.certificate))
}

/// RFC 7030 section 4.2.2: who shows its current certificate.
async fn simplereenroll(State(enrolment): Shared, Extension(peer): Extension<Peer>, body: Bytes) -> Response {
    let outcome = enrolment.reenrol(&peer, request_of(&body)).await;
    outcome.map_or_else(|denied| refusal(&denied, true), |certified| pkcs7(&certified.certificate))
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Wanted {
    name: String,
    token: String,
    /// PEM.
    csr: String,
}

async fn enroll(State(enrolment): Shared, Extension(peer): Extension<Peer>, body: Bytes) -> Response {
    let wanted: Wanted = match serde_json::from_slice(&body) {
        Ok(wanted) => wanted,
        Err(error) => return refusal(&Denied::Request(format!("JSON with name, token and csr: {error}")), false),
    };
    let outcome = enrolment.enrol(&peer, &wanted.name, &wanted.token, wanted.csr.into_bytes()).await;
    outcome.map_or_else(|denied| refusal(&denied, false), |certified| Json(certified).into_response())
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct WantedAgain {
    csr: String,
}

async fn reenroll(State(enrolment): Shared, Extension(peer): Extension<Peer>, body: Bytes) -> Response {
    let wanted: WantedAgain = match serde_json::from_slice(&body) {
        Ok(wanted) => wanted,
        Err(error) => return refusal(&Denied::Request(format!("JSON with csr: {error}")), false),
    };
    let outcome = enrolment.reenrol(&peer, wanted.csr.into_bytes()).await;
    outcome.map_or_else(|denied| refusal(&denied, false), |certified| Json(certified).into_response())
}

fn broken(error: &tokio::task::JoinError) -> Denied {
    Denied::Unavailable(error.to_string())
}

impl Enrolment {
    async fn cas(&self) -> Result<String, Denied> {
        let desk = self.desk.clone();
        tokio::task::spawn_blocking(move || desk.cas()).await.map_err(|error| broken(&error))?
    }

    async fn enrol(
        self: Arc<Self>,
        peer: &Peer,
        name: &str,
        token: &str,
        request: Vec<u8>,
    ) -> Result<Certified, Denied> {
        let (desk, name, token) = (self.desk.clone(), name.to_owned(), token.to_owned());
        self.issue(peer, true, move || desk.enrol(&name, &token, &request)).await
    }

    async fn reenrol(self: Arc<Self>, peer: &Peer, request: Vec<u8>) -> Result<Certified, Denied> {
        let desk = self.desk.clone();
        let Some(current) = peer.certificate.clone() else {
            let why = "a certificate of this site is expected in the TLS handshake";
            return Err(Denied::Credentials(why.to_owned()));
        };
        // A stranger at the same address cannot keep it from its renewal.
        self.issue(peer, false, move || desk.reenrol(&current, &request)).await
    }

    /// Goes on to its end though the peer hangs up: what is issued is taken up, and what is refused is counted.
    async fn issue(
        self: Arc<Self>,
        peer: &Peer,
        is_throttled: bool,
        work: impl FnOnce() -> Result<Certified, Denied> + Send + 'static,
    ) -> Result<Certified, Denied> {
        let address = peer.address;
        let whole = tokio::spawn(async move { self.issue_in_turn(address, is_throttled, work).await });
        whole.await.map_err(|error| broken(&error))?
    }

    async fn issue_in_turn(
        &self,
        address: SocketAddr,
        is_throttled: bool,
        work: impl FnOnce() -> Result<Certified, Denied> + Send + 'static,
    ) -> Result<Certified, Denied> {
        let may_try = || match !is_throttled || self.failures.may_try(address.ip(), Instant::now()) {
            true => Ok(()),
            false => Err(Denied::Unavailable("too many wrong tokens from this address: wait a minute".to_owned())),
        };
        may_try()?;
        let _free = self.desk_is_free.lock().await;
        // Others may have failed while this one waited for its turn.
        may_try()?;
        let outcome = tokio::task::spawn_blocking(work).await.map_err(|error| broken(&error))?;
        match &outcome {
            Ok(certified) => {
                info!(%address, "{} was enrolled: it has a certificate", certified.name);
                // It may connect before it has the answer. The certificate is written down: it is the device's
                // whatever else is wrong here.
                if let Err(error) = (self.reload)(Anew::Clients).await {
                    error!("the broker has not taken up the certificate of {}: {error}", certified.name);
                }
            }
            Err(Denied::Credentials(why)) => {
                self.failures.note(address.ip(), Instant::now());
                warn!(%address, kind = "enrolment", "enrolment refused: {why}");
            }
            Err(Denied::Request(why)) => warn!(%address, kind = "enrolment", "enrolment refused: {why}"),
            Err(Denied::Unavailable(why)) => warn!(%address, "enrolment failed: {why}"),
        }
        outcome
    }
}

/// The name and the password of HTTP Basic (RFC 7617).
fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (name, password) = text.split_once(':')?;
    Some((name.to_owned(), password.to_owned()))
}

/// A request as EST sends it, base64 of DER, with line breaks; PEM and DER are taken as they are.
fn request_of(body: &[u8]) -> Vec<u8> {
    let is_text = body.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
    if is_text && !body.starts_with(b"-----") {
        let bare: Vec<u8> = body.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
        if let Ok(der) = STANDARD.decode(bare) {
            return der;
        }
    }
    body.to_vec()
}

/// RFC 7030 section 4.1.3: base64 of a certs-only message.
fn pkcs7(pem: &str) -> Response {
    match pki::certs_only(pem) {
        Ok(der) => {
            let encoded = STANDARD.encode(der);
            let lines: Vec<&str> =
                encoded.as_bytes().chunks(76).map(|line| str::from_utf8(line).expect("base64 is ASCII")).collect();
            let kind = "application/pkcs7-mime; smime-type=certs-only";
            let headers = [
                (header::CONTENT_TYPE, kind),
                (header::HeaderName::from_static("content-transfer-encoding"), "base64"),
            ];
            (headers, lines.join("\r\n") + "\r\n").into_response()
        }
        Err(error) => refusal(&Denied::Unavailable(error.to_string()), true),
    }
}

/// `plain`: as text, as EST has it (RFC 7030 section 4.2.3); otherwise as JSON.
fn refusal(denied: &Denied, plain: bool) -> Response {
    let (status, why) = match denied {
        Denied::Credentials(why) => (StatusCode::UNAUTHORIZED, why),
        Denied::Request(why) => (StatusCode::BAD_REQUEST, why),
        Denied::Unavailable(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
    };
    let mut response = match plain {
        true => (status, format!("{why}\n")).into_response(),
        false => (status, Json(super::api::Problem { error: why.clone() })).into_response(),
    };
    let headers = response.headers_mut();
    match denied {
        Denied::Credentials(_) => {
            headers.insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Basic realm=\"lockgate\""));
        }
        Denied::Unavailable(_) => drop(headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("60"))),
        Denied::Request(_) => {}
    }
    response
}

/// Wrong tokens by address: a token cannot be guessed, and trying costs the disk nothing.
#[derive(Default)]
struct Failures(Mutex<HashMap<IpAddr, (Instant, u32)>>);

/// Wrong ones from one address, and then a wait.
const FAILURES_MAX: u32 = 5;
const FAILURES_WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are known at once.
const ADDRESSES_MAX: usize = 10_000;

impl Failures {
    fn may_try(&self, address: IpAddr, now: Instant) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = known.get(&network_of(address)).filter(|(since, _)| now - *since < FAILURES_WINDOW);
        count.is_none_or(|(_, count)| *count < FAILURES_MAX)
    }

    fn note(&self, address: IpAddr, now: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= ADDRESSES_MAX {
            known.retain(|_, (since, _)| now - *since < FAILURES_WINDOW);
        }
        // Beyond that none is counted: a token has 192 bits, and is not found by trying.
        if known.len() < ADDRESSES_MAX {
            let entry = known.entry(network_of(address)).or_insert((now, 0));
            if now - entry.0 >= FAILURES_WINDOW {
                *entry = (now, 0);
            }
            entry.1 += 1;
        }
    }
}
