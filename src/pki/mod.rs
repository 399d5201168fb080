//! The certificate authority: what is to be issued, issuing it, the ledger of what was, and the
//! only code that writes a site's files.

mod files;
mod host;
mod inspect;
mod issue;
mod ledger;
mod plan;

pub use files::{check_secret, is_half_made, read_secret, recover, FileError, Lock, Owner, Recovery, Transaction};
pub use host::{host_names, HostNames};
pub use inspect::{fingerprint, key_matches, load_certificates, load_key, rfc2253, CertificateInfo, InspectError};
pub use issue::{random_serial, Authority, Issued, IssueError};
pub use ledger::{Entry, Event, Kind, Ledger, LedgerError};
pub use plan::{KeyType, Lifetimes, ServerName, ServerNameError, CA_DAYS, LEAF_DAYS_MAX};
