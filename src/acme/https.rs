//! Requests to an ACME directory: within a time, of bounded size, and with roots of one's choosing.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, HttpClient, Problem};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::AcmeError;
use crate::pki;

const TIMEOUT: Duration = Duration::from_secs(30);
/// No answer is larger.
const ANSWER_MAX: usize = 1024 * 1024;

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Whom to believe to be the directory: the system's store, or those of a file.
pub(super) fn roots(file: Option<&Path>) -> Result<RootCertStore, AcmeError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = file else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return if roots.is_empty() { Err(AcmeError::NoRoots) } else { Ok(roots) };
    };
    let wrong = |what: &dyn std::fmt::Display| AcmeError::Roots { path: path.to_owned(), what: what.to_string() };
    let pem = std::fs::read(path).map_err(|error| wrong(&error))?;
    for certificate in pki::load_certificates(&pem).map_err(|error| wrong(&error))? {
        roots.add(certificate).map_err(|error| wrong(&error))?;
    }
    Ok(roots)
}

pub(super) struct Https {
    tls: TlsConnector,
}

impl Https {
    pub(super) fn new(roots: RootCertStore) -> Result<Https, rustls::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Https { tls: TlsConnector::from(Arc::new(config)) })
    }
}

impl HttpClient for Https {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let tls = self.tls.clone();
        Box::pin(async move {
            match tokio::time::timeout(TIMEOUT, exchange(tls, request)).await {
                Ok(answer) => answer.map_err(instant_acme::Error::Other),
                Err(_) => {
                    let what = format!("it does not answer within {} s", TIMEOUT.as_secs());
                    Err(instant_acme::Error::Other(what.into()))
                }
            }
        })
    }
}

async fn exchange(tls: TlsConnector, mut request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Failed> {
    let uri = request.uri().clone();
    if uri.scheme_str() != Some("https") {
        return Err(format!("{uri}: an ACME directory is reached by https").into());
    }
    let authority = uri.authority().ok_or("it is no URL with a host")?.clone();
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let placed = |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{authority}: {what}{error}"));
    let port = authority.port_u16().unwrap_or(443);
    let stream = TcpStream::connect((host.as_str(), port)).await.map_err(|error| placed("", error))?;
    let name = ServerName::try_from(host)?;
    let stream = tls.connect(name, stream).await.map_err(|error| placed("TLS: ", error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // A connection as bare as this one adds neither.
    request.headers_mut().insert(header::HOST, authority.as_str().parse()?);
    *request.uri_mut() = uri.path_and_query().map_or("/", |path| path.as_str()).parse::<Uri>()?;
    let driver = tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    let (parts, body) = answer.into_parts();
    let body: Bytes = Limited::new(body, ANSWER_MAX).collect().await?.to_bytes();
    driver.abort();
    judge(BytesResponse { parts, body: Box::new(body.clone()) }, &body, &uri)
}

/// What would be lost of an answer that is an error: when to come again (RFC 8555 section 6.6), and that it
/// was no ACME server's.
fn judge(answer: BytesResponse, body: &Bytes, uri: &Uri) -> Result<BytesResponse, Failed> {
    let (status, headers) = (answer.parts.status, &answer.parts.headers);
    if status.is_success() {
        return Ok(answer);
    }
    let again = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    match (serde_json::from_slice::<Problem>(body), again) {
        (Ok(problem), Some(again)) if status == StatusCode::TOO_MANY_REQUESTS => {
            Err(format!("{problem}; again after {again} s").into())
        }
        (Ok(_), _) => Ok(answer),
        (Err(_), _) => Err(format!("{uri} answers {status}, and not as an ACME server does").into()),
    }
}
