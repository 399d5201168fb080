//! Who a client is: the rules of the gate, one table, one place.
//!
//! | Certificate | User name | Rule | Outcome |
//! |---|---|---|---|
//! | of our CA, not current | any | any | refused |
//! | verified | none | `default` | its common name |
//! | verified | one | `default` | that name, if its password is right |
//! | verified | none, or its own name | `cn`, `subject` | its common name or subject |
//! | verified | another | `cn`, `subject` | refused |
//! | none | any | `cn`, `subject` | refused |
//! | none | one | `default` | that name, if its password is right |
//! | none | none, password | any | refused |
//! | none | none | `default` | anonymous, where the listener allows it |
//! | any | proven by a method | `default` | the identity that the method proved |
//! | verified | proven by a method | `cn`, `subject` | as a user name of that identity |
//!
//! | any | as without one | `user-name` | as without a certificate |
//!
//! Where nobody has a password and anonymous clients are allowed, a user name is believed (`unchecked`).
//! Then the levels: the connection has to reach the listener's minimum and the identity's.

use std::fmt;

use super::directory::Directory;
use crate::types::{Identity, Level, ReasonCode};

/// Which of certificate and user name makes the identity.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IdentityRule {
    /// A certificate for the machine, a login for the application on it.
    #[default]
    Default,
    /// The certificate's common name, and nothing else.
    CommonName,
    /// The certificate's subject (RFC 2253), and nothing else.
    Subject,
    /// The user name, and nothing else: a certificate opens the door and says nothing.
    UserName,
}

/// A certificate that TLS has verified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certificate {
    pub common_name: Option<String>,
    /// RFC 2253.
    pub subject: String,
    pub serial: Vec<u8>,
    /// Issued by the CA whose ledger is kept here.
    pub own: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Credentials<'a> {
    pub certificate: Option<&'a Certificate>,
    pub user_name: Option<&'a str>,
    pub has_password: bool,
    /// Who an extended authentication has proved it to be.
    pub proved: Option<&'a Identity>,
    /// Whether the connection is encrypted.
    pub tls: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ListenerRules {
    pub identity: IdentityRule,
    pub allow_anonymous: bool,
    pub min_level: Level,
    /// Names are whatever other software's files say; a user name beside a certificate that decides is passed over.
    pub foreign: bool,
    /// Nobody has a password, as Mosquitto without a `password_file`: where anonymous clients are allowed a user name is
    /// believed.
    pub unchecked: bool,
}

/// What the table says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Identification {
    /// In, by certificate (or anonymous: `None`).
    Admitted(Option<Identity>, Level),
    /// In, if the password for this user name is right. The name may be unknown: the password is
    /// checked all the same, against a decoy.
    Password {
        user_name: String,
        level: Level,
    },
    Refused(Refusal),
}

/// Why a client is not let in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Its serial number is not in the ledger, or was revoked there.
    CertificateNotCurrent {
        serial: Vec<u8>,
    },
    CertificateWithoutName,
    CertificateName {
        name: String,
    },
    CertificateRequired,
    CertificateContradictsUserName {
        certificate: String,
        user_name: String,
    },
    NoCredentials,
    PasswordWithoutUserName,
    WrongPassword {
        user_name: String,
        /// For the log alone: the peer is told the same either way, as fast.
        exists: bool,
    },
    /// Too many wrong attempts, before any hashing.
    Throttled {
        seconds: u64,
        by: ThrottledBy,
    },
    Level {
        identity: Option<Identity>,
        has: Level,
        needs: Level,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ThrottledBy {
    Address,
    Name,
}

impl Refusal {
    /// The CONNACK that answers it (MQTT 5 section 3.2.2.2).
    pub fn reason(&self) -> ReasonCode {
        match self {
            Refusal::WrongPassword { .. } | Refusal::PasswordWithoutUserName => ReasonCode::BadUserNameOrPassword,
            Refusal::Throttled { .. } => ReasonCode::QuotaExceeded,
            Refusal::CertificateNotCurrent { .. }
            | Refusal::CertificateWithoutName
            | Refusal::CertificateName { .. }
            | Refusal::CertificateRequired
            | Refusal::CertificateContradictsUserName { .. }
            | Refusal::NoCredentials
            | Refusal::Level { .. } => ReasonCode::NotAuthorized,
        }
    }

    /// A word for counters.
    pub fn kind(&self) -> &'static str {
        match self {
            Refusal::CertificateNotCurrent { .. } => "certificate-not-current",
            Refusal::CertificateWithoutName | Refusal::CertificateName { .. } => "certificate-name",
            Refusal::CertificateRequired => "certificate-required",
            Refusal::CertificateContradictsUserName { .. } => "certificate-contradicts-user-name",
            Refusal::NoCredentials => "no-credentials",
            Refusal::PasswordWithoutUserName => "password-without-user-name",
            Refusal::WrongPassword { .. } => "wrong-password",
            Refusal::Throttled { .. } => "throttled",
            Refusal::Level { .. } => "level",
        }
    }
}

/// The beginning of a peer's text, for the log: it may have 65,535 bytes.
pub fn cut(text: &str) -> &str {
    text.char_indices().nth(100).map_or(text, |(at, _)| &text[..at])
}

/// For the log: why, and what to do. A peer's text is escaped and cut.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::CertificateNotCurrent { serial } => {
                f.write_str("its certificate (serial ")?;
                serial.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                f.write_str(") is not current in the ledger: it was removed or replaced; a new one comes with `lockgate client add`")
            }
            Refusal::CertificateWithoutName => f.write_str("its certificate has no common name"),
            Refusal::CertificateName { name } => {
                write!(f, "the common name {:?} of its certificate is no identity's name", cut(name))
            }
            Refusal::CertificateRequired => {
                f.write_str("this listener takes the identity from a client certificate, and it sent none")
            }
            Refusal::CertificateContradictsUserName { certificate, user_name } => {
                write!(f, "its certificate says {:?}, its user name {:?}", cut(certificate), cut(user_name))
            }
            Refusal::NoCredentials => f.write_str(
                "it sent no user name and no certificate, and this listener does not allow anonymous clients",
            ),
            Refusal::PasswordWithoutUserName => f.write_str("it sent a password without a user name"),
            Refusal::WrongPassword { user_name, exists } => {
                let what = if *exists { "wrong password for" } else { "there is no user" };
                write!(f, "{what} {:?}", cut(user_name))
            }
            Refusal::Throttled { seconds, by: ThrottledBy::Address } => {
                write!(f, "too many wrong passwords from its address; next attempt in {seconds} s")
            }
            Refusal::Throttled { seconds, by: ThrottledBy::Name } => {
                write!(f, "too many wrong passwords for its user name; next attempt in {seconds} s")
            }
            Refusal::Level { identity: Some(identity), has, needs } => {
                write!(f, "{identity} has to connect at level {needs} at least, this is {has}")
            }
            Refusal::Level { identity: None, has, needs } => {
                write!(f, "this listener demands level {needs} at least, this is {has}")
            }
        }
    }
}

/// Applies the table of this module.
pub fn identify(rules: ListenerRules, directory: &Directory, credentials: &Credentials<'_>) -> Identification {
    let level = match (credentials.tls, credentials.certificate) {
        (_, Some(_)) => Level::Mtls,
        (true, None) => Level::Tls,
        (false, None) => Level::Plain,
    };
    if level < rules.min_level {
        return Identification::Refused(Refusal::Level { identity: None, has: level, needs: rules.min_level });
    }
    match decide(rules, directory, credentials) {
        Err(refusal) => Identification::Refused(refusal),
        Ok(Decided::Password(user_name)) => Identification::Password { user_name: user_name.to_owned(), level },
        Ok(Decided::Identity(identity)) => match check_level(directory, identity.as_ref(), level) {
            Ok(()) => Identification::Admitted(identity, level),
            Err(refusal) => Identification::Refused(refusal),
        },
    }
}

/// The identity's own minimum; asked again once a password was right.
pub fn check_level(directory: &Directory, identity: Option<&Identity>, level: Level) -> Result<(), Refusal> {
    let Some(identity) = identity else { return Ok(()) };
    let needs = directory.min_level(identity);
    if level < needs {
        return Err(Refusal::Level { identity: Some(identity.clone()), has: level, needs });
    }
    Ok(())
}

enum Decided<'a> {
    Identity(Option<Identity>),
    Password(&'a str),
}

fn decide<'a>(
    rules: ListenerRules,
    directory: &Directory,
    credentials: &Credentials<'a>,
) -> Result<Decided<'a>, Refusal> {
    let certificate = match credentials.certificate {
        Some(certificate) if certificate.own && !is_current(directory, certificate) => {
            return Err(Refusal::CertificateNotCurrent { serial: certificate.serial.clone() });
        }
        other => other,
    };
    let certificate = certificate.filter(|_| rules.identity != IdentityRule::UserName);
    match (certificate, rules.identity) {
        (None, IdentityRule::CommonName | IdentityRule::Subject) => Err(Refusal::CertificateRequired),
        (Some(certificate), rule @ (IdentityRule::CommonName | IdentityRule::Subject)) => {
            let name = certificate_name(certificate, rule, rules.foreign)?;
            match credentials.proved.map(Identity::as_str).or(credentials.user_name) {
                Some(user_name) if !rules.foreign && user_name != name.as_str() => {
                    Err(Refusal::CertificateContradictsUserName {
                        certificate: name.as_str().to_owned(),
                        user_name: user_name.to_owned(),
                    })
                }
                _ => Ok(Decided::Identity(Some(name))),
            }
        }
        (_, IdentityRule::Default | IdentityRule::UserName) if credentials.proved.is_some() => {
            Ok(Decided::Identity(credentials.proved.cloned()))
        }
        (certificate, IdentityRule::Default | IdentityRule::UserName) => match (credentials.user_name, certificate) {
            (Some(user_name), _) if rules.unchecked && rules.allow_anonymous => {
                Ok(Decided::Identity(Some(Identity::foreign(user_name))))
            }
            (Some(_), _) if rules.unchecked => Err(Refusal::NoCredentials),
            (Some(user_name), _) => Ok(Decided::Password(user_name)),
            (None, _) if credentials.has_password => Err(Refusal::PasswordWithoutUserName),
            (None, Some(certificate)) => certificate_name(certificate, IdentityRule::CommonName, rules.foreign)
                .map(|name| Decided::Identity(Some(name))),
            (None, None) if rules.allow_anonymous => Ok(Decided::Identity(None)),
            (None, None) => Err(Refusal::NoCredentials),
        },
    }
}

/// Whether the ledger has it, for the name that it bears: a serial number alone says little where the CA's key was stolen.
fn is_current(directory: &Directory, certificate: &Certificate) -> bool {
    let owner = directory.certificate_owner(&certificate.serial);
    owner.is_some_and(|owner| certificate.common_name.as_deref() == Some(owner.as_str()))
}

fn certificate_name(certificate: &Certificate, rule: IdentityRule, foreign: bool) -> Result<Identity, Refusal> {
    if rule == IdentityRule::Subject {
        return Ok(Identity::foreign(&certificate.subject));
    }
    let name = certificate.common_name.as_deref().ok_or(Refusal::CertificateWithoutName)?;
    if foreign {
        return Ok(Identity::foreign(name));
    }
    Identity::parse(name).map_err(|_| Refusal::CertificateName { name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::password::{Cost, PasswordHash};
    use super::*;

    fn directory() -> Directory {
        let min = BTreeMap::from([(Identity::parse("strict").unwrap(), Level::Mtls)]);
        let current = BTreeMap::from([
            (vec![1], Identity::parse("device1").unwrap()),
            (vec![3], Identity::parse("strict").unwrap()),
        ]);
        Directory::new(Vec::new(), min, current, PasswordHash::new(b"", Cost::Generated, [0; 16]))
    }

    fn certificate(name: &str, serial: u8, own: bool) -> Certificate {
        Certificate {
            common_name: Some(name.to_owned()),
            subject: format!("CN={name},O=site"),
            serial: vec![serial],
            own,
        }
    }

    fn ask(
        rules: ListenerRules,
        certificate: Option<&Certificate>,
        user_name: Option<&str>,
        has_password: bool,
        tls: bool,
    ) -> Identification {
        identify(rules, &directory(), &Credentials { certificate, user_name, has_password, proved: None, tls })
    }

    fn admitted(name: &str, level: Level) -> Identification {
        Identification::Admitted(Some(Identity::foreign(name)), level)
    }

    const RULES: ListenerRules = ListenerRules {
        identity: IdentityRule::Default,
        allow_anonymous: false,
        min_level: Level::Plain,
        foreign: false,
        unchecked: false,
    };
    const STRICT: ListenerRules = ListenerRules { identity: IdentityRule::CommonName, ..RULES };

    #[test]
    fn a_certificate_of_our_own_that_is_not_current_is_refused() {
        let old = certificate("device1", 2, true);
        let refused = Identification::Refused(Refusal::CertificateNotCurrent { serial: vec![2] });
        assert_eq!(ask(RULES, Some(&old), None, false, true), refused);
        assert_eq!(ask(RULES, Some(&old), Some("device1"), true, true), refused);
        assert_eq!(ask(STRICT, Some(&old), None, false, true), refused);
        // A current serial number with another's name on it was made by nobody who keeps the ledger.
        let forged = certificate("alice", 1, true);
        let refused = Identification::Refused(Refusal::CertificateNotCurrent { serial: vec![1] });
        assert_eq!(ask(RULES, Some(&forged), None, false, true), refused);
    }

    #[test]
    fn a_verified_certificate_alone_is_its_common_name() {
        assert_eq!(
            ask(RULES, Some(&certificate("device1", 1, true)), None, false, true),
            admitted("device1", Level::Mtls)
        );
        // Another CA's, which keeps its own books.
        assert_eq!(
            ask(RULES, Some(&certificate("guest", 9, false)), None, false, true),
            admitted("guest", Level::Mtls)
        );
    }

    #[test]
    fn where_nobody_has_a_password_a_name_is_believed_if_anybody_may_come() {
        let unchecked = ListenerRules { unchecked: true, foreign: true, identity: IdentityRule::UserName, ..RULES };
        let refused = Identification::Refused(Refusal::NoCredentials);
        assert_eq!(ask(unchecked, None, Some("bob b"), true, false), refused);
        let open = ListenerRules { allow_anonymous: true, ..unchecked };
        assert_eq!(ask(open, None, Some("bob b"), true, false), admitted("bob b", Level::Plain));
        assert_eq!(ask(open, None, None, false, false), Identification::Admitted(None, Level::Plain));
        // A certificate is no name here.
        let device = certificate("device1", 1, false);
        assert_eq!(ask(open, Some(&device), None, false, true), Identification::Admitted(None, Level::Mtls));
    }

    #[test]
    fn a_user_name_beside_a_certificate_needs_its_password() {
        let asked = Identification::Password { user_name: "app".to_owned(), level: Level::Mtls };
        assert_eq!(ask(RULES, Some(&certificate("device1", 1, true)), Some("app"), true, true), asked);
        assert_eq!(ask(RULES, Some(&certificate("device1", 1, true)), Some("app"), false, true), asked);
    }

    #[test]
    fn in_strict_mode_the_certificate_alone_decides() {
        let device = certificate("device1", 1, true);
        assert_eq!(ask(STRICT, Some(&device), None, false, true), admitted("device1", Level::Mtls));
        assert_eq!(ask(STRICT, Some(&device), Some("device1"), true, true), admitted("device1", Level::Mtls));
        assert!(matches!(
            ask(STRICT, Some(&device), Some("app"), true, true),
            Identification::Refused(Refusal::CertificateContradictsUserName { .. })
        ));
        let subject = ListenerRules { identity: IdentityRule::Subject, ..RULES };
        assert_eq!(ask(subject, Some(&device), None, false, true), admitted("CN=device1,O=site", Level::Mtls));
        assert_eq!(
            ask(STRICT, None, Some("device1"), true, true),
            Identification::Refused(Refusal::CertificateRequired)
        );
    }

    #[test]
    fn without_a_certificate_the_password_decides() {
        let asked = |level| Identification::Password { user_name: "device1".to_owned(), level };
        assert_eq!(ask(RULES, None, Some("device1"), true, false), asked(Level::Plain));
        assert_eq!(ask(RULES, None, Some("device1"), true, true), asked(Level::Tls));
        assert_eq!(ask(RULES, None, None, true, true), Identification::Refused(Refusal::PasswordWithoutUserName));
    }

    #[test]
    fn nobody_in_particular_comes_in_only_where_that_is_allowed() {
        assert_eq!(ask(RULES, None, None, false, false), Identification::Refused(Refusal::NoCredentials));
        let open = ListenerRules { allow_anonymous: true, ..RULES };
        assert_eq!(ask(open, None, None, false, false), Identification::Admitted(None, Level::Plain));
        // A name that is given must be proven all the same.
        assert!(matches!(ask(open, None, Some("x"), true, false), Identification::Password { .. }));
    }

    #[test]
    fn a_certificate_without_a_usable_name_is_refused() {
        let nameless = Certificate { common_name: None, ..certificate("x", 9, false) };
        assert_eq!(
            ask(RULES, Some(&nameless), None, false, true),
            Identification::Refused(Refusal::CertificateWithoutName)
        );
        assert!(matches!(
            ask(RULES, Some(&certificate("a/../b", 9, false)), None, false, true),
            Identification::Refused(Refusal::CertificateName { .. })
        ));
    }

    #[test]
    fn levels_of_the_listener_and_of_the_identity_are_demanded() {
        let tls_only = ListenerRules { min_level: Level::Tls, ..RULES };
        assert!(matches!(
            ask(tls_only, None, Some("device1"), true, false),
            Identification::Refused(Refusal::Level { identity: None, has: Level::Plain, needs: Level::Tls })
        ));
        let strict = Identity::parse("strict").unwrap();
        assert!(check_level(&directory(), Some(&strict), Level::Tls).is_err());
        assert_eq!(check_level(&directory(), Some(&strict), Level::Mtls), Ok(()));
        assert_eq!(
            ask(RULES, Some(&certificate("strict", 3, true)), None, false, true),
            admitted("strict", Level::Mtls)
        );
    }
}
