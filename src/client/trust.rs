//! Whom a client believes to be the broker, and how it shows who it is itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// What a TLS client goes by.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// The CA's certificates, PEM; `None`: those whom this system trusts.
    pub ca: Option<PathBuf>,
    /// The client's certificate chain and key, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The broker's certificate need not name what was dialled.
    pub any_name: bool,
    pub versions: Versions,
}

/// Versions of TLS that are offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Versions {
    #[default]
    All,
    Only12,
    Only13,
}

/// A file that cannot be used, and why.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TrustError {
    #[error("{}: {error}", .file.display())]
    File { file: PathBuf, error: String },
    #[error("{}: there is no certificate in it", .0.display())]
    Empty(PathBuf),
    #[error("this system trusts no CA: name the broker's with --ca FILE")]
    NoSystemRoots,
}

fn unusable(file: &Path, error: impl std::fmt::Display) -> TrustError {
    TrustError::File { file: file.to_owned(), error: error.to_string() }
}

/// Reads a file's certificates.
pub(crate) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let read = read.map_err(|error| unusable(file, error))?;
    if read.is_empty() { Err(TrustError::Empty(file.to_owned())) } else { Ok(read) }
}

/// What handshakes are done with.
pub fn configuration(trust: &Trust) -> Result<ClientConfig, TrustError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = verifier(trust, &provider)?;
    let verifier: Arc<dyn ServerCertVerifier> = match trust.any_name {
        false => verifier,
        true => Arc::new(Lenient { verifier: Some(verifier), provider: provider.clone() }),
    };
    with(trust, provider, verifier)
}

/// For looking at a server: it may show whatever it likes. Nothing that is secret goes to it.
pub fn observing(trust: &Trust) -> Result<ClientConfig, TrustError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(Lenient { verifier: None, provider: provider.clone() });
    with(trust, provider, verifier)
}

/// What a client that trusts so says of a chain, now; `by_name`: for that name too.
pub fn verify(trust: &Trust, chain: &[CertificateDer<'_>], name: &str, by_name: bool) -> Result<(), Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = verifier(trust, &provider).map_err(|error| Error::General(error.to_string()))?;
    let (leaf, between) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
    let name = ServerName::try_from(name.to_owned()).map_err(|error| Error::General(error.to_string()))?;
    match by_name {
        true => verifier.verify_server_cert(leaf, between, &name, &[], UnixTime::now()),
        false => Lenient { verifier: Some(verifier), provider }.verify_server_cert(
            leaf,
            between,
            &name,
            &[],
            UnixTime::now(),
        ),
    }
    .map(drop)
}

fn verifier(trust: &Trust, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, TrustError> {
    let mut roots = RootCertStore::empty();
    match &trust.ca {
        Some(file) => {
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| unusable(file, error))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(TrustError::NoSystemRoots);
            }
        }
    }
    let built = WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone()).build();
    built.map_err(|error| unusable(trust.ca.as_deref().unwrap_or(Path::new("CA")), error))
}

fn with(
    trust: &Trust,
    provider: Arc<CryptoProvider>,
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<ClientConfig, TrustError> {
    let versions: &[&rustls::SupportedProtocolVersion] = match trust.versions {
        Versions::All => rustls::ALL_VERSIONS,
        Versions::Only12 => &[&rustls::version::TLS12],
        Versions::Only13 => &[&rustls::version::TLS13],
    };
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_protocol_versions(versions).expect("the provider has both");
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    match &trust.identity {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, key)) => {
            let chain = certificates(certificate)?;
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, error))?;
            builder.with_client_auth_cert(chain, secret).map_err(|error| match error {
                Error::InconsistentKeys(_) => {
                    unusable(key, format!("this key does not belong to the certificate {}", certificate.display()))
                }
                other => unusable(certificate, other),
            })
        }
    }
}

/// Verifies the chain, if it is to, and lets the certificate have any name.
#[derive(Debug)]
struct Lenient {
    verifier: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let name = CertificateError::NotValidForName;
        let Some(verifier) = &self.verifier else { return Ok(ServerCertVerified::assertion()) };
        match verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(Error::InvalidCertificate(error))
                if error == name || matches!(error, CertificateError::NotValidForNameContext { .. }) =>
            {
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
