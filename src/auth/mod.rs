//! Who are you, may you: pure decisions on what others have read from files and sockets.

mod acl;
mod directory;
mod exchange;
mod identify;
mod password;

pub use acl::{Access, Acl, AclError, Decision, Operation, Subject};
pub use directory::{Directory, DirectoryError, PasswordLine, parse_foreign_passwords, parse_passwords};
pub use exchange::{Exchange, Method, Methods, Step};
pub use identify::{
    Certificate, Credentials, Identification, IdentityRule, ListenerRules, Refusal, ThrottledBy, check_level, cut,
    identify,
};
pub use password::{Cost, HashError, PasswordHash};
