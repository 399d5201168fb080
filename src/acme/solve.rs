//! Answers to the CA's questions whether a name is this machine: http-01 (RFC 8555 section 8.3) and tls-alpn-01
//! (RFC 8737). They are given while an order is under way, and by nobody else.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::ServerConfig;
use rustls::server::Acceptor;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_rustls::LazyConfigAcceptor;

use super::AcmeError;
use crate::config::{Acme, Challenge};

const PROTOCOL: &[u8] = b"acme-tls/1";
const TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that are answered at once: a CA asks from a handful of places.
const ANSWERED_MAX: usize = 64;

#[derive(Default)]
struct Answers {
    /// By token.
    http: BTreeMap<String, String>,
    /// By server name.
    tls: BTreeMap<String, Arc<ServerConfig>>,
}

/// Listens until it is dropped.
pub(super) struct Solver {
    answers: Arc<Mutex<Answers>>,
    task: JoinHandle<()>,
}

impl Drop for Solver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Solver {
    pub(super) fn listen(acme: &Acme) -> Result<Solver, AcmeError> {
        let (address, challenge) = (acme.address, acme.challenge);
        let failed = |error| AcmeError::Listen { address, port: challenge.port(), error };
        let socket = std::net::TcpListener::bind(address).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let socket = TcpListener::from_std(socket).map_err(failed)?;
        let answers: Arc<Mutex<Answers>> = Arc::default();
        let given = answers.clone();
        let task = tokio::spawn(async move {
            let places = Arc::new(Semaphore::new(ANSWERED_MAX));
            loop {
                let Ok(place) = places.clone().acquire_owned().await else { return };
                let Ok((stream, _)) = socket.accept().await else {
                    // Out of file descriptors, mostly: others have to go first.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let answers = given.clone();
                let answered = async move {
                    match challenge {
                        Challenge::Http01 => over_http(stream, answers).await,
                        Challenge::TlsAlpn01 => over_tls(stream, answers).await,
                    }
                };
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(TIMEOUT, answered).await;
                    drop(place);
                });
            }
        });
        Ok(Solver { answers, task })
    }

    pub(super) fn answer_http(&self, token: &str, answer: &str) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.http.insert(token.to_owned(), answer.to_owned());
    }

    /// `digest`: of the key authorization, SHA-256.
    pub(super) fn answer_tls(&self, name: &str, digest: &[u8]) -> Result<(), AcmeError> {
        let config = answering(name, digest).map_err(|error| AcmeError::Key(error.to_string()))?;
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.tls.insert(server_name(name), config);
        Ok(())
    }
}

/// As the CA will call it: an address by its name in the reverse tree (RFC 8738 section 6).
fn server_name(name: &str) -> String {
    match name.parse() {
        Ok(IpAddr::V4(address)) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        Ok(IpAddr::V6(address)) => {
            let nibbles = address.octets().into_iter().rev().flat_map(|byte| [byte & 0xF, byte >> 4]);
            nibbles.map(|nibble| format!("{nibble:x}.")).collect::<String>() + "ip6.arpa"
        }
        Err(_) => name.to_ascii_lowercase(),
    }
}

/// A certificate that says nothing but the answer, in a critical extension.
fn answering(name: &str, digest: &[u8]) -> Result<Arc<ServerConfig>, Box<dyn std::error::Error>> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = provider.key_provider.load_private_key(key)?;
    // The usual way looks at the certificate, and refuses an extension that is critical and unknown to it.
    let certified = CertifiedKey::new(vec![certificate.der().clone()], key);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(Arc::new(config))
}

async fn over_http(stream: TcpStream, answers: Arc<Mutex<Answers>>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let token = request.uri().path().strip_prefix("/.well-known/acme-challenge/");
        let answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = token.and_then(|token| answers.http.get(token).cloned());
        let mut response = Response::new(Full::new(Bytes::from(answer.clone().unwrap_or_default())));
        if answer.is_none() {
            *response.status_mut() = StatusCode::NOT_FOUND;
        }
        async move { Ok::<_, Infallible>(response) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(TIMEOUT);
    drop(server.serve_connection(TokioIo::new(stream), service).await);
}

async fn over_tls(stream: TcpStream, answers: Arc<Mutex<Answers>>) {
    let Ok(start) = LazyConfigAcceptor::new(Acceptor::default(), stream).await else { return };
    let hello = start.client_hello();
    // RFC 8737 section 3: this protocol, and no other.
    let asks = hello.alpn().is_some_and(|mut offered| offered.next() == Some(PROTOCOL) && offered.next().is_none());
    let config = hello.server_name().and_then(|name| {
        let answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.tls.get(&name.to_ascii_lowercase()).cloned()
    });
    if let (true, Some(config)) = (asks, config) {
        // The handshake is the answer.
        drop(start.into_stream(config).await);
    }
}
