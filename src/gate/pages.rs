//! What a listener serves by HTTP: Mosquitto's `/api/v1/...`, and the files of a folder.

use std::convert::Infallible;
use std::future::Future;
use std::io::Cursor;
use std::path::{Component, Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
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
use tower_http::services::ServeDir;
use tracing::{debug, warn};

use super::admit::Arrival;
use super::link::{Carrier, Link};
use super::login::Login;
use crate::auth::{Certificate, Operation, Refusal, Subject};
use crate::config::Pages;
use crate::types::Topic;

/// How long a connection may be silent between requests, and how long it may last.
const SILENCE: Duration = Duration::from_secs(10);
const LIFE: Duration = Duration::from_secs(60);

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

impl Arrival {
    /// Answers requests until the peer or the time for them ends. `head`: what was read of the first one.
    pub(super) async fn serve_pages(
        &self,
        link: Link,
        head: Vec<u8>,
        pages: &Pages,
        certificate: Option<&Certificate>,
    ) {
        let ended = match link.carrier {
            Carrier::Tcp(stream) => self.answer(stream, head, pages, certificate).await,
            Carrier::Unix(stream) => self.answer(stream, head, pages, certificate).await,
            Carrier::Tls(stream) => self.answer(*stream, head, pages, certificate).await,
        };
        if let Err(error) = ended {
            debug!(id = self.number, address = %self.peer, "its HTTP connection ended: {error}");
        }
    }

    async fn answer(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        head: Vec<u8>,
        pages: &Pages,
        certificate: Option<&Certificate>,
    ) -> Result<(), hyper::Error> {
        let (read, write) = tokio::io::split(stream);
        let stream = TokioIo::new(tokio::io::join(Cursor::new(head).chain(read), write));
        let service = service_fn(async |request| Ok::<_, Infallible>(self.respond(&request, pages, certificate).await));
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(SILENCE)
            .serve_connection(stream, service);
        tokio::time::timeout(LIFE, connection).await.unwrap_or(Ok(()))
    }

    async fn respond(
        &self,
        request: &Request<Incoming>,
        pages: &Pages,
        certificate: Option<&Certificate>,
    ) -> Response<Body> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "Invalid HTTP Method\n");
        }
        let path = request.uri().path();
        if pages.api
            && let Err(why) = self.may_see(request.headers(), path, certificate).await
        {
            self.gate.stats.refuse("http");
            warn!(id = self.number, address = %self.peer, listener = &*self.listener, kind = "http", "refused {path:?} by HTTP: {why}");
            let mut response = plain(StatusCode::UNAUTHORIZED, "Not authorised\n");
            let challenge = HeaderValue::from_static("Basic realm=\"Mosquitto API\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            return response;
        }
        let asked = match path {
            "/api/v1/systree" => Asked::SysTree,
            "/api/v1/listeners" => Asked::Listeners,
            "/api/v1/version" => Asked::Version,
            _ if !path.starts_with("/api/") || !pages.api => return file(pages.folder.as_deref(), request).await,
            _ => return not_found(),
        };
        let told = match self.gate.told.get().filter(|_| pages.api) {
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

    /// The path is read as a topic is: by the same names, passwords and ACL.
    async fn may_see(&self, headers: &HeaderMap, path: &str, certificate: Option<&Certificate>) -> Result<(), String> {
        let current = self.gate.current.load_full();
        let material =
            self.material_now(&current, certificate).map_err(|_| "its listener has changed: it has to come again")?;
        let login = credentials(headers)?;
        let (user_name, password) =
            login.as_ref().map_or((None, None), |(name, secret)| (Some(&**name), Some(&**secret)));
        let (identity, _) = self
            .identify(
                Login { certificate, user_name, password: password.map(str::as_bytes), proved: None },
                &material,
                &current.directory,
            )
            .await
            .map_err(|refusal: Refusal| refusal.to_string())?;
        let subject = Subject {
            identity: identity.as_ref().map(|identity| identity.as_str()),
            client_id: "http-api",
            realm: material.entrance.realm,
        };
        let topic = Topic::parse(path).map_err(|error| error.to_string())?;
        match current.acl.check(subject, Operation::Read, topic).allowed {
            true => Ok(()),
            false => Err("the ACL does not let it read this path".to_owned()),
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

/// A file of the folder; nothing that a link there leads out to.
async fn file(folder: Option<&Path>, request: &Request<Incoming>) -> Response<Body> {
    let Some(folder) = folder else { return not_found() };
    let root = folder.to_owned();
    let Some(wanted) = place(folder, request.uri().path()) else { return not_found() };
    let is_inside = tokio::task::spawn_blocking(move || {
        let (root, wanted) = (std::fs::canonicalize(root).ok()?, std::fs::canonicalize(wanted).ok()?);
        wanted.starts_with(root).then_some(())
    });
    if !matches!(is_inside.await, Ok(Some(()))) {
        return not_found();
    }
    let mut asked = Request::builder().method(request.method()).uri(request.uri());
    if let Some(headers) = asked.headers_mut() {
        headers.clone_from(request.headers());
    }
    let asked = asked.body(Full::<Bytes>::default()).expect("as it came");
    match ServeDir::new(folder).try_call(asked).await {
        Ok(response) => response.map(|body| body.boxed_unsync()),
        Err(error) => {
            debug!("a file of {} is not served: {error}", folder.display());
            not_found()
        }
    }
}

/// Where a request's path leads; `None`: out of the folder.
fn place(folder: &Path, path: &str) -> Option<PathBuf> {
    let decoded = percent_decode_str(path).decode_utf8().ok()?;
    let relative = Path::new(decoded.trim_start_matches('/'));
    relative.components().all(|part| matches!(part, Component::Normal(_))).then(|| folder.join(relative))
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
