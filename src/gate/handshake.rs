//! The TLS handshake, and its failures in plain words.

use std::io;
use std::sync::Arc;

use rustls::{AlertDescription, CertificateError, Error as TlsError, PeerIncompatible};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::{LazyConfigAcceptor, TlsStream};

use super::material::TlsMaterial;
use crate::config::ClientCerts;

/// A client's certificate is past its time.
pub(super) const EXPIRED: &str = "the client's certificate is expired: `lockgate client renew`, or a token for a device that enrols, lets it in again";

/// What knocked instead of what the listener speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Knock {
    Tls,
    Mqtt,
    Http,
    Other,
}

impl Knock {
    /// By a connection's first bytes.
    pub(super) fn of(bytes: &[u8]) -> Knock {
        match bytes {
            [0x16, 0x03, ..] | [0x16] => Knock::Tls,
            // CONNECT, in whatever length.
            [0x10, ..] => Knock::Mqtt,
            // Whole, or what came of it so far.
            _ if !bytes.is_empty()
                && [&b"GET "[..], b"POST", b"HEAD", b"PUT ", b"OPTI"]
                    .iter()
                    .any(|verb| verb.iter().zip(bytes).all(|(wanted, byte)| wanted == byte)) =>
            {
                Knock::Http
            }
            _ => Knock::Other,
        }
    }
}

/// Why a handshake failed: a word for counters, and a sentence.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: &'static str,
    pub(super) why: String,
}

/// Looks at the first bytes without taking them; `None`: the peer closed.
pub(super) async fn peek(stream: &TcpStream) -> io::Result<Option<Knock>> {
    let mut first = [0; 8];
    let count = stream.peek(&mut first).await?;
    Ok((count > 0).then(|| Knock::of(&first[..count])))
}

/// Runs the handshake. A client that asks for an application protocol of another name is served
/// all the same: ALPN is an offer here, not a demand.
pub(super) async fn accept(stream: TcpStream, tls: &TlsMaterial) -> Result<TlsStream<TcpStream>, Failure> {
    let start = match LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await {
        Ok(start) => start,
        Err(error) => return Err(explain(&error, tls, false)),
    };
    let offers_mqtt = start.client_hello().alpn().is_some_and(|mut offered| offered.any(|name| name == b"mqtt"));
    let config = if offers_mqtt { &tls.with_alpn } else { &tls.without_alpn };
    match start.into_stream(Arc::clone(config)).await {
        Ok(stream) => Ok(TlsStream::Server(stream)),
        Err(error) => Err(explain(&error, tls, true)),
    }
}

/// The first bytes after the handshake may still bring the client's verdict on our certificate.
pub(super) async fn read(
    stream: &mut TlsStream<TcpStream>,
    buffer: &mut Vec<u8>,
    tls: &TlsMaterial,
) -> Result<usize, Failure> {
    match stream.read_buf(buffer).await {
        Ok(0) => Err(Failure {
            kind: "tls-closed",
            why: "closed after seeing our certificate: check the name it dialled and its CA".to_owned(),
        }),
        Ok(count) => Ok(count),
        Err(error) => Err(explain(&error, tls, true)),
    }
}

fn explain(error: &io::Error, tls: &TlsMaterial, hello_seen: bool) -> Failure {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
    let (kind, why) = match inner {
        Some(error) => explain_tls(error, tls),
        None if !hello_seen => ("tls-no-hello", "closed before it said anything".to_owned()),
        None if matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        ) =>
        {
            ("tls-closed", "closed after seeing our certificate: check the name it dialled and its CA".to_owned())
        }
        None => ("tls-io", format!("the connection broke: {error}")),
    };
    Failure { kind, why }
}

fn explain_tls(error: &TlsError, tls: &TlsMaterial) -> (&'static str, String) {
    let ca = tls.client_ca.display();
    match error {
        TlsError::AlertReceived(alert) => match alert {
            AlertDescription::UnknownCA => {
                ("client-distrusts-us", "the client does not trust this CA: give it pki/ca.crt".to_owned())
            }
            AlertDescription::CertificateExpired => (
                "client-distrusts-us",
                "the client says our certificate is expired: check its clock and the certificate".to_owned(),
            ),
            // InternalError: what OpenSSL sends where the application refused the certificate's name.
            AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::InternalError => (
                "client-distrusts-us",
                "the client refuses our certificate: check the name it dialled, its clock, and that it has pki/ca.crt"
                    .to_owned(),
            ),
            AlertDescription::ProtocolVersion => ("tls-version", "no TLS version in common".to_owned()),
            AlertDescription::HandshakeFailure => {
                ("tls-parameters", "no cipher suite or parameter in common".to_owned())
            }
            AlertDescription::CloseNotify | AlertDescription::UserCanceled => {
                ("tls-closed", "closed after seeing our certificate: check the name it dialled and its CA".to_owned())
            }
            other => ("tls-alert", format!("the client ended the handshake with the alert {other:?}")),
        },
        TlsError::NoCertificatesPresented => (
            "no-client-certificate",
            match tls.client_certs {
                ClientCerts::Required => {
                    format!("the client sent no certificate, and this listener requires one signed by {ca}")
                }
                _ => "the client sent no certificate".to_owned(),
            },
        ),
        TlsError::InvalidCertificate(error) => explain_certificate(error, &ca.to_string()),
        TlsError::PeerIncompatible(
            PeerIncompatible::SignatureAlgorithmsExtensionRequired
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls13RequiredForQuic
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered,
        ) => ("tls-version", "the client offers no TLS version that is allowed here (see tls.min-version)".to_owned()),
        TlsError::PeerIncompatible(reason) => {
            ("tls-parameters", format!("nothing in common with the client: {reason:?}"))
        }
        TlsError::InvalidMessage(_) => ("tls-garbage", "what it sent is no TLS".to_owned()),
        other => ("tls-error", format!("TLS: {other}")),
    }
}

fn explain_certificate(error: &CertificateError, ca: &str) -> (&'static str, String) {
    let kind = "client-certificate";
    let why = match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => EXPIRED.to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the client's certificate is not valid yet: check this machine's clock".to_owned()
        }
        CertificateError::UnknownIssuer => format!("the client's certificate was not signed by {ca}"),
        CertificateError::Revoked => "the client's certificate is revoked".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the client's certificate is not for clients (its extended key usage lacks clientAuth)".to_owned()
        }
        CertificateError::Other(error) if format!("{error:?}").contains("UnsupportedCertVersion") => {
            "the client's certificate is an X.509 v1 certificate, which is refused: `lockgate client renew NAME` makes a good one".to_owned()
        }
        CertificateError::BadSignature => format!("the client's certificate has a signature that is not by {ca}"),
        other => format!("the client's certificate is not accepted: {other}"),
    };
    (kind, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_knocks_is_told_by_its_first_bytes() {
        assert_eq!(Knock::of(&[0x16, 0x03, 0x01, 0, 5]), Knock::Tls);
        assert_eq!(Knock::of(&[0x10, 0x0c, 0, 4, b'M']), Knock::Mqtt);
        assert_eq!(Knock::of(b"GET / HT"), Knock::Http);
        assert_eq!(Knock::of(b"\0\0"), Knock::Other);
    }
}
