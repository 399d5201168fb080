/// Names a certificate: by who issued it and its serial number (RFC 5280 section 4.1.2.2).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CertificateId {
    /// RFC 2253.
    pub issuer: Box<str>,
    /// Big-endian, without a leading zero byte.
    pub serial: Box<[u8]>,
}

impl CertificateId {
    pub fn new(issuer: &str, serial: &[u8]) -> CertificateId {
        CertificateId { issuer: issuer.into(), serial: serial.into() }
    }
}
