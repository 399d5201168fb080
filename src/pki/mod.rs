//! The certificate authority: what is to be issued, issuing it, the ledger of what was, and the
//! only code that writes a site's files.

mod crl;
mod files;
mod host;
mod inspect;
mod issue;
mod keystore;
mod ledger;
mod pkcs7;
mod plan;
mod protected;
mod rebuild;
mod request;
mod survey;
mod tokens;

pub use crl::{CRL_DAYS, CrlError, ListWanted, RevocationList};
pub use files::{
    FileError, Lock, Owner, Recovery, Transaction, check_secret, is_half_made, read_secret, recover, replace,
    write_folder,
};
pub use host::{HostNames, host_names};
pub use inspect::{
    CertificateInfo, InspectError, certificate_pem, fingerprint, key_matches, load_certificates, load_key,
    openssl_subject, rfc2253,
};
pub use issue::{Authority, IssueError, Issued, random_serial, self_signed};
pub use keystore::{KeystoreError, Protection, certificate_der, pkcs12, truststore};
pub use ledger::{Entry, Event, Kind, Ledger, LedgerError, Reason, Revocation};
pub use pkcs7::certs_only;
pub use plan::{CA_DAYS, ISSUING_CA_DAYS, KeyType, LEAF_DAYS_MAX, Permitted, ServerName, ServerNameError};
pub use protected::{ProtectedKeyError, is_protected, open as open_key, protect as protect_key, to_pkcs8};
pub use rebuild::{Rebuilt, Remains, has_kept, is_signed_by, kept, rebuild, same_name};
pub use request::{Request, RequestError, new_request, new_server_request};
pub use survey::{Book, FoundCertificate, FoundKey, Indexed, Survey};
pub use tokens::{Token, TokenError, Tokens};
