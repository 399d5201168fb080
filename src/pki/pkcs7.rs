//! Certificates as a certs-only CMS message (RFC 5652, RFC 7030 section 4.1.3).

use cms::cert::x509::Certificate;
use cms::cert::x509::der::{Decode, Encode};
use cms::content_info::ContentInfo;

use super::inspect::{InspectError, load_certificates};

/// All certificates of a PEM text; DER.
pub fn certs_only(pem: &str) -> Result<Vec<u8>, InspectError> {
    let damaged = |error: cms::cert::x509::der::Error| InspectError::Damaged(error.to_string());
    let ders = load_certificates(pem.as_bytes())?;
    let certificates = ders.iter().map(|der| Certificate::from_der(der)).collect::<Result<Vec<_>, _>>();
    ContentInfo::try_from(certificates.map_err(damaged)?).and_then(|message| message.to_der()).map_err(damaged)
}
