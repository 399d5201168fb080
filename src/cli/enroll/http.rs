//! Requests to a broker's enrolment address, with TLS as one says.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use super::super::Failure;
use crate::client::{Trust, observing};

const TIMEOUT: Duration = Duration::from_secs(30);
/// No answer is larger.
const ANSWER_MAX: usize = 256 * 1024;

/// `https://HOST[:PORT]`.
pub(super) struct Place {
    pub(super) host: String,
    port: u16,
}

impl Place {
    pub(super) fn parse(url: &str) -> Result<Place, Failure> {
        let wrong = || Failure::configuration(format!("--url {url:?}: https://HOST:PORT is expected"));
        let rest = url.strip_prefix("https://").ok_or_else(wrong)?.trim_end_matches('/');
        let uri: hyper::Uri = format!("https://{rest}").parse().map_err(|_| wrong())?;
        if uri.path() != "/" || uri.query().is_some() {
            return Err(wrong());
        }
        let host = uri.host().ok_or_else(wrong)?.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Place { host, port: uri.port_u16().unwrap_or(8443) })
    }

    /// Sends one request and gives the answer's body; a refusal is told in its own words.
    pub(super) async fn ask(
        &self,
        config: ClientConfig,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Vec<u8>, Failure> {
        let here = format!("{}:{}", self.host, self.port);
        match tokio::time::timeout(TIMEOUT, self.exchange(config, path, body)).await {
            Ok(answer) => answer.map_err(|error| Failure::new(format!("{here}: {error}"))),
            Err(_) => Err(Failure::new(format!("{here} does not answer within {} s", TIMEOUT.as_secs()))),
        }
    }

    async fn exchange(
        &self,
        config: ClientConfig,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
        let stream = tokio::net::TcpStream::connect((self.host.as_str(), self.port)).await?;
        let name = ServerName::try_from(self.host.clone())?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request = Request::builder().uri(path).header("host", &self.host);
        let request = match body {
            Some(body) => {
                request.method("POST").header("content-type", "application/json").body(Full::new(Bytes::from(body)))
            }
            None => request.body(Full::new(Bytes::new())),
        };
        let response = sender.send_request(request?).await?;
        let status = response.status();
        let bytes = Limited::new(response.into_body(), ANSWER_MAX).collect().await?.to_bytes();
        driver.abort();
        if status.is_success() {
            return Ok(bytes.to_vec());
        }
        match serde_json::from_slice::<crate::admin::api::Problem>(&bytes) {
            Ok(problem) => Err(problem.error.into()),
            Err(_) => Err(format!("it answers {status}").into()),
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Trusts these CAs; with a certificate and its key, shows them.
pub(super) fn trusting(
    cas: Vec<CertificateDer<'static>>,
    client: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<ClientConfig, Failure> {
    let mut roots = RootCertStore::empty();
    for ca in cas {
        roots.add(ca).map_err(Failure::new)?;
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(Failure::new)?
        .with_root_certificates(roots);
    match client {
        None => Ok(config.with_no_client_auth()),
        Some((chain, key)) => config.with_client_auth_cert(chain, key).map_err(Failure::new),
    }
}

/// Trusts whoever answers: for the CA's certificate alone, which the token's fingerprint then proves.
pub(super) fn trusting_anybody() -> Result<ClientConfig, Failure> {
    observing(&Trust::default()).map_err(Failure::new)
}
