//! What a listener serves by HTTP: Mosquitto's `/api/v1/...`, and the files of a folder.

use std::borrow::Cow;
use std::convert::Infallible;
use std::future::Future;
use std::io::Cursor;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tower_http::services::ServeFile;
use tracing::{debug, warn};

use super::Current;
use super::admit::Arrival;
use super::link::{Carrier, Link};
use super::login::Login;
use super::slots::Pending;
use super::upgrade::HEAD_MAX;
use crate::auth::{self, Certificate, Operation, Refusal, Subject};
use crate::config::Pages;
use crate::types::{Identity, Topic};

/// How long a connection may be silent between requests, and how long it may last.
const SILENCE: Duration = Duration::from_secs(10);
const LIFE: Duration = Duration::from_secs(60);
const HEADERS_MAX: usize = 64;

/// Something that `/api/v1/...` tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// The counts of `$SYS`, an object of numbers.
    SysTree,
    Listeners,
    Version,
}

/// Who answers it; `None`: nobody can now.
pub type Told = Arc<dyn Fn(Asked) -> Pin<Box<dyn Future<Output = Option<String>> + Send>> + Send + Sync>;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A connection that is served.
struct Visit<'a> {
    arrival: &'a Arrival,
    pages: &'a Pages,
    certificate: Option<&'a Certificate>,
    /// Its place among those that are not in, until somebody has shown who he is.
    pending: Mutex<Option<Pending>>,
    /// Who that was, by which header and at what time of the directory's: hashing is dear.
    known: Mutex<Option<Known>>,
}

#[derive(Clone)]
struct Known {
    header: Option<HeaderValue>,
    current: Arc<Current>,
    identity: Option<Identity>,
}

/// Why somebody may not see something.
enum Refused {
    /// The answer, and what the log says.
    With(StatusCode, String),
    /// It has said nothing of itself yet.
    Unknown,
}

impl Arrival {
    /// Answers requests until the peer or the time for them ends. `head`: what was read of the first one.
    pub(super) async fn serve_pages(
        &self,
        link: Link,
        head: Vec<u8>,
        pages: &Pages,
        certificate: Option<&Certificate>,
        pending: Pending,
    ) {
        let visit =
            Visit { arrival: self, pages, certificate, pending: Mutex::new(Some(pending)), known: Mutex::default() };
        let ended = match link.carrier {
            Carrier::Tcp(stream) => visit.answer(stream, head).await,
            Carrier::Unix(stream) => visit.answer(stream, head).await,
            Carrier::Tls(stream) => visit.answer(*stream, head).await,
        };
        if let Err(error) = ended {
            debug!(id = self.number, address = %self.peer, "its HTTP connection ended: {error}");
        }
    }
}

impl Visit<'_> {
    async fn answer(&self, stream: impl AsyncRead + AsyncWrite + Unpin, head: Vec<u8>) -> Result<(), hyper::Error> {
        let (read, write) = tokio::io::split(stream);
        let stream = TokioIo::new(tokio::io::join(Cursor::new(head).chain(read), write));
        let service = service_fn(async |request| Ok::<_, Infallible>(self.respond(&request).await));
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(SILENCE)
            .max_buf_size(HEAD_MAX)
            .max_headers(HEADERS_MAX)
            .serve_connection(stream, service);
        tokio::time::timeout(LIFE, connection).await.unwrap_or(Ok(()))
    }

    async fn respond(&self, request: &Request<Incoming>) -> Response<Body> {
        let arrival = self.arrival;
        let current = arrival.gate.current.load_full();
        let is_same = current.listeners.get(&*arrival.name).is_some_and(|now| Arc::ptr_eq(now, &arrival.material));
        if !is_same {
            return last(plain(StatusCode::SERVICE_UNAVAILABLE, "The listener has changed: connect again.\n"));
        }
        if request.method() != Method::GET {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "Invalid HTTP Method\n");
        }
        let Some(path) = whole_path(request.uri().path()) else { return not_found() };
        if self.pages.api
            && let Err(refused) = self.may_see(request.headers(), &path, &current).await
        {
            return self.refuse(&path, refused);
        }
        let asked = match &*path {
            "/api/v1/systree" => Asked::SysTree,
            "/api/v1/listeners" => Asked::Listeners,
            "/api/v1/version" => Asked::Version,
            _ if self.pages.api && path.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("/api/")) => {
                return not_found();
            }
            _ => return file(self.pages.folder.as_deref(), &path, request).await,
        };
        let told = match arrival.gate.told.get().filter(|_| self.pages.api) {
            Some(told) => told(asked).await,
            None => None,
        };
        let Some(text) = told else { return not_found() };
        let mut response = plain(StatusCode::OK, text);
        // Dashboards come from elsewhere, as Mosquitto lets them.
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        if asked != Asked::Version {
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        response
    }

    fn refuse(&self, path: &str, refused: Refused) -> Response<Body> {
        let arrival = self.arrival;
        let status = match refused {
            Refused::Unknown => StatusCode::UNAUTHORIZED,
            Refused::With(status, why) => {
                arrival.gate.stats.refuse("http-login");
                warn!(id = arrival.number, address = %arrival.peer, listener = &*arrival.listener, kind = "http-login", "refused {:?} by HTTP: {why}", auth::cut(path));
                status
            }
        };
        let mut response = plain(status, "Not authorised\n");
        if status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Basic realm=\"Mosquitto API\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        last(response)
    }

    /// The path is read as a topic is: by the same names, passwords and ACL.
    async fn may_see(&self, headers: &HeaderMap, path: &str, current: &Arc<Current>) -> Result<(), Refused> {
        let unauthorized = |why: String| Refused::With(StatusCode::UNAUTHORIZED, why);
        let header = headers.get(header::AUTHORIZATION);
        let material = &self.arrival.material;
        let lock = |known: &Mutex<Option<Known>>| known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let known =
            lock(&self.known).filter(|known| known.header.as_ref() == header && Arc::ptr_eq(&known.current, current));
        let identity = match known {
            Some(known) => known.identity,
            None => {
                let login = credentials(headers).map_err(unauthorized)?;
                let (user_name, password) = login.unzip();
                let login = Login {
                    certificate: self.certificate,
                    user_name: user_name.as_deref(),
                    password: password.as_ref().map(|password| password.as_bytes()),
                    proved: None,
                };
                let identified = self.arrival.identify(login, material, &current.directory).await;
                let (identity, _) = identified.map_err(|refusal| match refusal {
                    Refusal::NoCredentials => Refused::Unknown,
                    Refusal::Throttled { .. } => Refused::With(StatusCode::TOO_MANY_REQUESTS, refusal.to_string()),
                    refusal => unauthorized(refusal.to_string()),
                })?;
                let known = Known { header: header.cloned(), current: current.clone(), identity: identity.clone() };
                *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
                identity
            }
        };
        let subject = Subject {
            identity: identity.as_ref().map(|identity| identity.as_str()),
            client_id: "http-api",
            realm: material.entrance.realm,
        };
        let topic = Topic::parse(path).map_err(|error| unauthorized(error.to_string()))?;
        match current.acl.check(subject, Operation::Read, topic).allowed {
            true => {
                drop(self.pending.lock().unwrap_or_else(PoisonError::into_inner).take());
                Ok(())
            }
            false => Err(unauthorized("the ACL does not let it read this path".to_owned())),
        }
    }
}

/// RFC 7617: a user name and its password; `None`: there is no such header.
fn credentials(headers: &HeaderMap) -> Result<Option<(String, String)>, String> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let encoded = text.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"));
    let decoded = encoded.and_then(|(_, encoded)| STANDARD.decode(encoded.trim()).ok());
    let login = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    let login = login.as_deref().and_then(|login| login.split_once(':'));
    let (name, secret) = login.ok_or("its Authorization is not of the Basic kind")?;
    Ok(Some((name.to_owned(), secret.to_owned())))
}

/// A request's path, decoded: the one that the ACL and the folder go by. `None`: no file can have it.
fn whole_path(path: &str) -> Option<Cow<'_, str>> {
    // A level is what stands between slashes that were sent as such.
    if path.to_ascii_lowercase().contains("%2f") {
        return None;
    }
    let decoded = percent_decode_str(path).decode_utf8().ok()?;
    let levels = decoded.strip_prefix('/')?;
    let levels = levels.strip_suffix('/').unwrap_or(levels);
    let is_plain = |level: &str| !matches!(level, "" | "." | "..") && !level.contains(['\0', '\\', '+', '#']);
    (levels.is_empty() || levels.split('/').all(is_plain)).then_some(decoded)
}

/// A file of the folder; nothing that a link there leads out to.
async fn file(folder: Option<&Path>, path: &str, request: &Request<Incoming>) -> Response<Body> {
    let Some(folder) = folder else { return not_found() };
    let root = folder.to_owned();
    let index = if path.ends_with('/') { "index.html" } else { "" };
    let wanted = folder.join(format!("{}{index}", &path[1..]));
    let found = tokio::task::spawn_blocking(move || {
        let (root, file) = (std::fs::canonicalize(root).ok()?, std::fs::canonicalize(wanted).ok()?);
        (file.starts_with(root) && file.is_file()).then_some(file)
    });
    let Ok(Some(file)) = found.await else { return not_found() };
    let mut asked = Request::builder().method(request.method()).uri(request.uri());
    if let Some(headers) = asked.headers_mut() {
        headers.clone_from(request.headers());
    }
    let asked = asked.body(Full::<Bytes>::default()).expect("as it came");
    match ServeFile::new(&file).try_call(asked).await {
        Ok(response) => response.map(|body| body.boxed_unsync()),
        Err(error) => {
            debug!("{} is not served: {error}", file.display());
            not_found()
        }
    }
}

/// The connection ends with it.
fn last(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn not_found() -> Response<Body> {
    plain(StatusCode::NOT_FOUND, "Not found.\n")
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(text.into()).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
