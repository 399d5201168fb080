//! Failures of TLS, in words for people.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};
use rustls_pki_types::UnixTime;
use time::OffsetDateTime;

/// What rustls says of a stream's error, if it is its.
pub fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref::<Error>())
}

/// A stream's error, whoever made it.
pub fn describe(error: &io::Error) -> String {
    match tls_error(error) {
        Some(error) => describe_tls(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "the broker closed the connection".to_owned(),
        None => error.to_string(),
    }
}

/// ` (what it says)`, where a peer says something; nothing in it moves a terminal's cursor.
pub fn because(reason_string: Option<&str>) -> String {
    reason_string.map(|why| format!(" ({})", harmless(why))).unwrap_or_default()
}

/// Control characters as escapes.
pub fn harmless(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut made, c| {
        match c.is_control() {
            true => made.extend(c.escape_default()),
            false => made.push(c),
        }
        made
    })
}

/// Whether a server ended the handshake over the client's certificate.
pub fn is_about_client(error: &io::Error) -> bool {
    matches!(
        tls_error(error),
        Some(Error::AlertReceived(
            AlertDescription::CertificateRequired
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRevoked
                | AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::DecryptError
                | AlertDescription::AccessDenied
        ))
    )
}

/// Whether both ends have no version of TLS in common.
pub fn is_about_versions(error: &io::Error) -> bool {
    use PeerIncompatible::{
        ServerDoesNotSupportTls12Or13, ServerTlsVersionIsDisabledByOurConfig, Tls12NotOfferedOrEnabled,
    };
    matches!(
        tls_error(error),
        Some(
            Error::AlertReceived(AlertDescription::ProtocolVersion)
                | Error::PeerIncompatible(
                    ServerDoesNotSupportTls12Or13 | ServerTlsVersionIsDisabledByOurConfig | Tls12NotOfferedOrEnabled
                )
        )
    )
}

/// A client's view: the peer is a broker.
fn describe_tls(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => describe_certificate(error),
        Error::AlertReceived(alert) => describe_alert(*alert),
        Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
            "what answers there speaks no TLS".to_owned()
        }
        Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13) => {
            "the broker speaks neither TLS 1.2 nor 1.3".to_owned()
        }
        Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOfferedOrEnabled | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => "the broker speaks no version of TLS that was offered".to_owned(),
        other => other.to_string(),
    }
}

fn day(at: &UnixTime) -> String {
    OffsetDateTime::from_unix_timestamp(at.as_secs() as i64).map(|at| at.date().to_string()).unwrap_or_default()
}

fn describe_certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired => "the broker's certificate is expired".to_owned(),
        CertificateError::ExpiredContext { time, not_after } => {
            format!("the broker's certificate expired on {} (this clock says {})", day(not_after), day(time))
        }
        CertificateError::NotValidYet => "the broker's certificate is not valid yet".to_owned(),
        CertificateError::NotValidYetContext { time, not_before } => {
            format!("the broker's certificate is valid from {} on, and this clock says {}", day(not_before), day(time))
        }
        CertificateError::NotValidForName => "the broker's certificate does not name what was dialled".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<String> = presented.iter().map(|name| name_of(name)).collect();
            let names = if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
            format!("the broker's certificate does not name {}: it is for {names}", expected.to_str())
        }
        CertificateError::UnknownIssuer => "the broker's certificate is of a CA that is not trusted here".to_owned(),
        CertificateError::BadSignature => "the signature on the broker's certificate is wrong".to_owned(),
        CertificateError::Revoked => "the broker's certificate was revoked".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the broker's certificate is not for servers (extended key usage)".to_owned()
        }
        CertificateError::Other(other) => {
            let text = other.to_string();
            match text.contains("UnsupportedCertVersion") {
                true => {
                    "the broker's certificate is X.509 version 1, without names: nobody can tell whose it is".to_owned()
                }
                false => format!("the broker's certificate is not valid: {text}"),
            }
        }
        other => format!("the broker's certificate is not valid: {other:?}"),
    }
}

/// `DnsName("broker")` as `broker`.
fn name_of(presented: &str) -> String {
    match presented.split_once("(\"").and_then(|(_, rest)| rest.strip_suffix("\")")) {
        Some(name) => name.to_owned(),
        None => presented.trim_start_matches("IpAddress(").trim_end_matches(')').to_owned(),
    }
}

fn describe_alert(alert: AlertDescription) -> String {
    let refused = |what: &str| format!("the broker refuses the client's certificate: {what}");
    match alert {
        AlertDescription::CertificateRequired => "the broker requires a client certificate".to_owned(),
        AlertDescription::CertificateExpired => refused("it is expired"),
        AlertDescription::CertificateRevoked => refused("it was revoked"),
        AlertDescription::UnknownCA => refused("it is of a CA that the broker does not know"),
        AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::DecryptError
        | AlertDescription::AccessDenied => refused(&format!("{alert:?}")),
        AlertDescription::ProtocolVersion => "the broker speaks no version of TLS that was offered".to_owned(),
        AlertDescription::HandshakeFailure => {
            "the broker found no way to agree on TLS (its versions or ciphers are others, or it requires a client certificate)"
                .to_owned()
        }
        AlertDescription::UnrecognisedName => "the broker does not know the name that was dialled".to_owned(),
        other => format!("the broker ended TLS: {other:?}"),
    }
}
