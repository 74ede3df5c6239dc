//! One setting's value and where it came from, and the checks by type.

use super::settings::{SettingName, setting};
use super::{ConfigError, Device};
use crate::secret::Secret;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

/// A setting as found.
pub(super) struct Value {
    /// `None` when neither set nor defaulted.
    pub(super) text: Option<String>,
    pub(super) from_flag: bool,
    origin: String,
    /// All values of a repeated flag.
    all: Vec<String>,
}

impl Value {
    /// Flag over variable over default. An empty variable counts as not set.
    pub(super) fn read(
        name: SettingName,
        flag: &dyn Fn(SettingName) -> Vec<String>,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Self {
        let setting = setting(name);
        let flags = flag(name);
        if let Some(last) = flags.last() {
            let origin = format!("--{}", setting.flag);
            return Self { text: Some(last.clone()), from_flag: true, origin, all: flags };
        }
        let set = variable(setting.variable).filter(|value| !value.is_empty());
        let default = || (!setting.default.is_empty()).then(|| setting.default.to_owned());
        let text = set.or_else(default);
        Self {
            all: text.iter().cloned().collect(),
            text,
            from_flag: false,
            origin: setting.variable.to_owned(),
        }
    }

    pub(super) fn number(&self, min: usize, max: usize) -> Result<usize, ConfigError> {
        let number = self.text().parse().ok().filter(|number| (min..=max).contains(number));
        number.ok_or_else(|| self.refuse(format!("use a whole number from {min} to {max}")))
    }

    /// A limit, of which 0 is none.
    pub(super) fn limit(&self) -> Result<Option<u32>, ConfigError> {
        let number = self.number(0, u32::MAX as usize)?;
        Ok(u32::try_from(number).ok().filter(|number| *number > 0))
    }

    pub(super) fn seconds(&self, min: f64, max: f64) -> Result<Duration, ConfigError> {
        let seconds: Option<f64> = self.text().parse().ok().filter(|seconds| (min..=max).contains(seconds));
        let seconds =
            seconds.ok_or_else(|| self.refuse(format!("use a number of seconds from {min} to {max}")))?;
        Ok(Duration::from_secs_f64(seconds))
    }

    pub(super) fn address(&self) -> Result<IpAddr, ConfigError> {
        match self.text() {
            "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
            text => text
                .parse()
                .map_err(|_| self.refuse("use an IP address such as 127.0.0.1, 0.0.0.0 or ::1".to_owned())),
        }
    }

    pub(super) fn device(&self) -> Result<Device, ConfigError> {
        match self.text() {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "hip" => Ok(Device::Hip),
            _ => Err(self.refuse("use auto, cpu or hip".to_owned())),
        }
    }

    pub(super) fn optional_path(&self) -> Result<Option<PathBuf>, ConfigError> {
        match self.text.as_deref() {
            Some("") => Err(self.refuse("use a path, or leave it out".to_owned())),
            path => Ok(path.map(PathBuf::from)),
        }
    }

    /// A name as it appears in URLs and JSON.
    pub(super) fn optional_word(&self) -> Result<Option<String>, ConfigError> {
        let Some(word) = self.text.as_deref() else { return Ok(None) };
        let fits = !word.is_empty()
            && word.len() <= 256
            && !word.chars().any(|c| c.is_control() || c.is_whitespace());
        if fits {
            Ok(Some(word.to_owned()))
        } else {
            Err(self.refuse("use 1 to 256 characters without spaces".to_owned()))
        }
    }

    pub(super) fn origins(&self) -> Result<Vec<String>, ConfigError> {
        let origins =
            self.all.iter().flat_map(|list| list.split(',')).map(str::trim).filter(|one| !one.is_empty());
        let origins: Vec<String> = origins.map(str::to_owned).collect();
        let fits = |origin: &String| {
            let host = origin.strip_prefix("http://").or(origin.strip_prefix("https://"));
            origin == "*"
                || host.is_some_and(|host| {
                    !host.is_empty() && host.chars().all(|c| c.is_ascii_graphic() && c != '/')
                })
        };
        if origins.iter().all(fits) {
            Ok(origins)
        } else {
            Err(self.refuse("use origins such as https://chat.example.org, or *".to_owned()))
        }
    }

    pub(super) fn keys(&self) -> Result<Vec<Secret>, ConfigError> {
        let fits = |key: &String| !key.is_empty() && key.chars().all(|c| c.is_ascii_graphic());
        if self.all.iter().all(fits) {
            return Ok(self.all.iter().map(Secret::new).collect());
        }
        let reason = "use visible ASCII characters without spaces".to_owned();
        Err(ConfigError { value: "(hidden)".to_owned(), ..self.refuse(reason) })
    }

    fn text(&self) -> &str {
        self.text.as_deref().unwrap_or_default()
    }

    fn refuse(&self, reason: String) -> ConfigError {
        ConfigError {
            origin: self.origin.clone(),
            value: self.text().to_owned(),
            reason,
            from_flag: self.from_flag,
        }
    }
}
