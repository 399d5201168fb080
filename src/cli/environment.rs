//! `mqtt.env`: the variables that MQTT applications of this family read, in text that a shell,
//! dotenv, systemd's EnvironmentFile and `docker --env-file` all read alike.

use std::path::Path;

use thiserror::Error;

/// What an application needs to connect.
#[derive(Clone, Debug, Default)]
pub(super) struct Environment {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) use_tls: bool,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) ca_certs: Option<String>,
    /// Certificate and key.
    pub(super) certificate: Option<(String, String)>,
}

/// A value that not every reader of the file would read alike.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "{name} would be {value:?}: {character:?} is read differently by shells, dotenv, systemd and docker; allowed are letters, digits and _ . / : @ + = -"
)]
pub(super) struct ValueError {
    name: &'static str,
    value: String,
    character: char,
}

impl Environment {
    /// Whether a value may have this character.
    pub(super) fn takes(c: char) -> bool {
        c.is_ascii_alphanumeric() || "_./:@+=-".contains(c)
    }

    /// The file's text: unquoted, so every value is checked. A password is refused by its name only.
    pub(super) fn render(&self) -> Result<String, ValueError> {
        let mut text = String::new();
        let mut line = |name: &'static str, value: &str| {
            let bad = value.chars().find(|c| !Environment::takes(*c));
            if let Some(character) = bad {
                let value = if name == "MQTT_PASSWORD" { "(the password)" } else { value };
                return Err(ValueError { name, value: value.to_owned(), character });
            }
            text.push_str(name);
            text.push('=');
            text.push_str(value);
            text.push('\n');
            Ok(())
        };
        line("MQTT_HOST", &self.host)?;
        line("MQTT_PORT", &self.port.to_string())?;
        line("MQTT_USE_TLS", if self.use_tls { "true" } else { "false" })?;
        if let Some(user) = &self.user {
            line("MQTT_USER", user)?;
        }
        if let Some(password) = &self.password {
            line("MQTT_PASSWORD", password)?;
        }
        if let Some(ca) = &self.ca_certs {
            line("MQTT_CA_CERTS", ca)?;
        }
        if let Some((certificate, key)) = &self.certificate {
            line("MQTT_CERTFILE", certificate)?;
            line("MQTT_KEYFILE", key)?;
        }
        line("MQTT_TLS_INSECURE", "false")?;
        Ok(text)
    }

    /// A file's text with another password, or with none; what else is in it stays.
    pub(super) fn with_password(text: &str, user: Option<&str>, password: Option<&str>) -> Result<String, ValueError> {
        let password = password.map(str::to_owned);
        let checked = Environment { user: user.map(str::to_owned), password, ..Environment::default() };
        let rendered = checked.render()?;
        let ours: Vec<&str> = rendered
            .lines()
            .filter(|line| line.starts_with("MQTT_USER=") || line.starts_with("MQTT_PASSWORD="))
            .collect();
        let others = text.lines().filter(|line| !line.starts_with("MQTT_USER=") && !line.starts_with("MQTT_PASSWORD="));
        let (head, tail): (Vec<&str>, Vec<&str>) = others
            .partition(|line| ["MQTT_HOST=", "MQTT_PORT=", "MQTT_USE_TLS="].iter().any(|name| line.starts_with(name)));
        Ok(head.into_iter().chain(ours).chain(tail).map(|line| format!("{line}\n")).collect())
    }

    /// The value of a variable in a file's text.
    pub(super) fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    }
}

/// A path as it stands in the file.
pub(super) fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_readers_disagree_on_are_refused_by_name() {
        let good = Environment { host: "broker.local".to_owned(), port: 8883, use_tls: true, ..Environment::default() };
        assert_eq!(
            good.render().unwrap(),
            "MQTT_HOST=broker.local\nMQTT_PORT=8883\nMQTT_USE_TLS=true\nMQTT_TLS_INSECURE=false\n"
        );
        let spaced = Environment { ca_certs: Some("/my site/ca.crt".to_owned()), ..good.clone() };
        let error = spaced.render().unwrap_err().to_string();
        assert!(error.starts_with("MQTT_CA_CERTS would be \"/my site/ca.crt\": ' '"), "{error}");
        let secret = Environment { password: Some("pa$$".to_owned()), ..good };
        let error = secret.render().unwrap_err().to_string();
        assert!(error.contains("MQTT_PASSWORD") && !error.contains("pa$$"), "{error}");
    }
}
