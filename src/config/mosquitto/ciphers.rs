//! OpenSSL's names of cipher suites, as far as rustls has them.

use super::Wrong;

/// rustls' suites of TLS 1.2: OpenSSL's name, rustls', and the words that stand for it among others.
const TLS12: [(&str, &str, &[&str]); 6] = [
    (
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        &["AES256", "AESGCM", "AES", "aECDSA", "ECDSA", "SHA384"],
    ),
    (
        "ECDHE-RSA-AES256-GCM-SHA384",
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        &["AES256", "AESGCM", "AES", "aRSA", "SHA384"],
    ),
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        &["AES128", "AESGCM", "AES", "aECDSA", "ECDSA", "SHA256"],
    ),
    (
        "ECDHE-RSA-AES128-GCM-SHA256",
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        &["AES128", "AESGCM", "AES", "aRSA", "SHA256"],
    ),
    (
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        &["CHACHA20", "aECDSA", "ECDSA"],
    ),
    ("ECDHE-RSA-CHACHA20-POLY1305", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", &["CHACHA20", "aRSA"]),
];

/// Words that all six have.
const ALL: [&str; 8] = ["ALL", "HIGH", "DEFAULT", "ECDHE", "EECDH", "kECDHE", "kEECDH", "TLSv1.2"];

/// Those of TLS 1.3, in rustls' order.
const TLS13: [(&str, &str); 3] = [
    ("TLS_AES_256_GCM_SHA384", "TLS13_AES_256_GCM_SHA384"),
    ("TLS_AES_128_GCM_SHA256", "TLS13_AES_128_GCM_SHA256"),
    ("TLS_CHACHA20_POLY1305_SHA256", "TLS13_CHACHA20_POLY1305_SHA256"),
];

/// The suites that `ciphers` and `ciphers_tls1.3` leave, by rustls' names in the order wanted; none for all.
pub(super) fn suites(tls12: Option<&str>, tls13: Option<&str>) -> Result<Vec<&'static str>, Wrong> {
    if tls12.is_none() && tls13.is_none() {
        return Ok(Vec::new());
    }
    let mut suites = match tls13 {
        None => TLS13.map(|(_, name)| name).to_vec(),
        Some(text) => {
            let found = words(text).filter_map(|word| TLS13.iter().find(|(name, _)| *name == word));
            named(found.map(|(_, name)| *name).collect(), "ciphers_tls1.3", text, &TLS13.map(|(name, _)| name))?
        }
    };
    suites.extend(match tls12 {
        None => TLS12.map(|(_, name, _)| name).to_vec(),
        Some(text) => named(listed(text), "ciphers", text, &TLS12.map(|(name, ..)| name))?,
    });
    Ok(suites)
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([':', ',', ' ', ';']).filter(|word| !word.is_empty())
}

fn named(found: Vec<&'static str>, option: &str, text: &str, known: &[&str]) -> Result<Vec<&'static str>, Wrong> {
    match found.is_empty() {
        false => Ok(found),
        true => {
            Err(Wrong::new(format!("{option} {text}: none of these is offered here; there are {}.", known.join(":"))))
        }
    }
}

/// openssl-ciphers(1): what is named is appended, `!` removes for good, `-` for now, `+` moves to the end.
fn listed(text: &str) -> Vec<&'static str> {
    let mut list: Vec<&'static str> = Vec::new();
    let mut banned: Vec<&'static str> = Vec::new();
    for word in words(text).filter(|word| !word.starts_with('@')) {
        let (sign, word) = match word.strip_prefix(['!', '-', '+']) {
            Some(rest) => (word.as_bytes()[0], rest),
            None => (b' ', word),
        };
        let meant = |name: &str, has: &[&str]| {
            word == name || word.split('+').all(|part| ALL.contains(&part) || has.contains(&part))
        };
        let meant: Vec<&str> =
            TLS12.iter().filter(|(name, _, has)| meant(name, has)).map(|(_, name, _)| *name).collect();
        match sign {
            b' ' => {
                let new: Vec<_> =
                    meant.into_iter().filter(|name| !list.contains(name) && !banned.contains(name)).collect();
                list.extend(new);
            }
            b'+' => list.sort_by_key(|name| meant.contains(name)),
            _ => {
                list.retain(|name| !meant.contains(name));
                if sign == b'!' {
                    banned.extend(meant);
                }
            }
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openssl_s_names_and_words_are_rustls_suites() {
        let of = |text: &str| suites(Some(text), None).map(|names| names[3..].to_vec());
        assert_eq!(of("ECDHE-RSA-AES128-GCM-SHA256:AES256-SHA").unwrap(), ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]);
        assert_eq!(of("HIGH:!aNULL:!MD5").unwrap().len(), 6);
        assert_eq!(of("ECDHE+AESGCM:!aECDSA:!AES128").unwrap(), ["TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"]);
        let order = of("DEFAULT:+AES256:@STRENGTH").unwrap();
        assert!(order[0].contains("AES_128") && order[5] == "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "{order:?}");
        assert_eq!(of("ALL:-CHACHA20:CHACHA20").unwrap()[4..].len(), 2);
        assert!(of("AES256-SHA").unwrap_err().what.contains("none of these is offered here"));
        assert_eq!(
            suites(None, Some("TLS_CHACHA20_POLY1305_SHA256")).unwrap()[..2],
            ["TLS13_CHACHA20_POLY1305_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"]
        );
        assert!(suites(None, None).unwrap().is_empty());
    }
}
