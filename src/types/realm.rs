/// Names, in what outlives the process too, who vouches for clients and what they may: a listener's password file, ACL and
/// mount point. One name in two realms is two people.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Realm(u32);

impl Realm {
    /// That of the site: of listeners that have nothing of their own.
    pub const SITE: Realm = Realm(0);

    /// By what makes it one.
    pub fn of(parts: &[&str]) -> Realm {
        Realm(crc32fast::hash(parts.join("\0").as_bytes()).max(1))
    }

    pub fn value(self) -> u32 {
        self.0
    }

    pub fn from_value(value: u32) -> Realm {
        Realm(value)
    }
}
