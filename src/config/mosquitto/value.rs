//! What an option's value says: booleans, numbers, times, as Mosquitto reads them.

use std::path::PathBuf;

use super::{Line, Wrong};

/// 0 means that there is no limit.
pub(super) fn bounded(value: u64, most: u64) -> u64 {
    if value == 0 { most } else { value.min(most) }
}

/// -1 means that there is no limit.
pub(super) fn unlimited(value: i64, most: usize) -> usize {
    usize::try_from(value).map_or(most, |value| value.min(most))
}

impl Line<'_> {
    pub(super) fn empty(&self) -> Wrong {
        Wrong::new(format!("Empty {} value in configuration.", self.name))
    }

    pub(super) fn text(&self) -> Result<String, Wrong> {
        if self.value.is_empty() { Err(self.empty()) } else { Ok(self.value.to_owned()) }
    }

    pub(super) fn path(&self) -> Result<PathBuf, Wrong> {
        self.text().map(PathBuf::from)
    }

    /// The value's first word: what stands behind it is not read.
    pub(super) fn word(&self) -> &str {
        self.value.split([' ', '\t']).next().unwrap_or_default()
    }

    pub(super) fn boolean(&self) -> Result<bool, Wrong> {
        match self.word() {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            "" => Err(self.empty()),
            other => Err(Wrong::new(format!("Invalid {} value ({other}).", self.name))),
        }
    }

    /// Decimal, 0x and 0 in front as C has them.
    pub(super) fn signed(&self) -> Result<i64, Wrong> {
        let word = self.word();
        let (sign, digits) = word.strip_prefix('-').map_or((1, word), |rest| (-1, rest));
        let parsed = match digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
            Some(hexadecimal) => i64::from_str_radix(hexadecimal, 16),
            None if digits.len() > 1 && digits.starts_with('0') => i64::from_str_radix(&digits[1..], 8),
            None => digits.parse(),
        };
        match parsed {
            _ if word.is_empty() => Err(self.empty()),
            Ok(number) => Ok(sign * number),
            Err(_) => Err(Wrong::new(format!("Invalid {} value ({word}).", self.name))),
        }
    }

    pub(super) fn number(&self, range: std::ops::RangeInclusive<u64>) -> Result<u64, Wrong> {
        let number = self.signed()?;
        u64::try_from(number)
            .ok()
            .filter(|number| range.contains(number))
            .ok_or_else(|| Wrong::new(format!("Invalid {} value ({number}).", self.name)))
    }

    pub(super) fn prefix(&self) -> Result<String, Wrong> {
        let text = self.text()?;
        match text.len() {
            ..=50 => Ok(text),
            _ => Err(Wrong::new(format!("{} may have 50 characters.", self.name))),
        }
    }

    /// `14d`, `2m`.
    pub(super) fn expiration(&self) -> Result<u32, Wrong> {
        let wrong = || Wrong::new("Invalid persistent_client_expiration duration in configuration.");
        let word = self.word();
        let unit = word.chars().next_back().ok_or_else(|| self.empty())?;
        let number: u64 = word[..word.len() - unit.len_utf8()].parse().map_err(|_| wrong())?;
        let secs = match unit {
            's' => 1,
            'h' => 3_600,
            'd' => 86_400,
            'w' => 7 * 86_400,
            'm' => 30 * 86_400,
            'y' => 365 * 86_400,
            _ => return Err(wrong()),
        };
        match number.saturating_mul(secs) {
            0 => Err(wrong()),
            total => Ok(u32::try_from(total).unwrap_or(u32::MAX - 1)),
        }
    }
}
