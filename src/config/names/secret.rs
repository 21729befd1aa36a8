//! Strings that lead to a secret, and the one that is a secret.

use std::{fmt, str::FromStr};

use crate::config::literal::{Fault, Literal, literal};

/// A path of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathName(pub String);

/// The name of a systemd credential, or `""` for none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CredentialName(pub String);

/// The name of an environment variable, or `""` for none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VariableName(pub String);

/// A token written out, or `""` for none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TokenText(pub String);

/// The most bytes a token may have, as text: its file has about 1 KiB.
pub const LONGEST_TOKEN: usize = 64 << 10;

/// What the kernel takes as a path (`PATH_MAX`).
const LONGEST_PATH: usize = 4096;

/// What systemd takes as the name of a credential: a file name.
const LONGEST_NAME: usize = 255;

impl Literal for PathName {
    const KIND: &'static str = "path";
    const NOUN: &'static str = "a path";
    const EXPECTED: &'static str = "the path of a file";
    const PATTERN: &'static str = "^[^\\u0000]+$";
}

impl FromStr for PathName {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        if text.is_empty() {
            return Err(Fault::new("empty"));
        }
        if text.contains('\0') {
            return Err(Fault::new("a NUL byte in a path"));
        }
        if text.len() > LONGEST_PATH {
            return Err(Fault::new("too long for a path"));
        }
        Ok(PathName(text.to_owned()))
    }
}

impl Literal for CredentialName {
    const KIND: &'static str = "credential-name";
    const NOUN: &'static str = "the name of a credential";
    const EXPECTED: &'static str =
        "the name of a systemd credential, such as \"edgevpn.token\", or \"\" for none";
    const PATTERN: &'static str = "^(?!\\.\\.?$)[^/\\u0000]{0,255}$";
}

impl FromStr for CredentialName {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        if text.contains(['/', '\0']) || text == "." || text == ".." {
            return Err(Fault::new("a file name, without a directory"));
        }
        if text.len() > LONGEST_NAME {
            return Err(Fault::new("too long for a name"));
        }
        Ok(CredentialName(text.to_owned()))
    }
}

impl Literal for VariableName {
    const KIND: &'static str = "variable-name";
    const NOUN: &'static str = "the name of an environment variable";
    const EXPECTED: &'static str =
        "the name of an environment variable, such as \"SITE_TOKEN\", or \"\" for none";
    const PATTERN: &'static str = "^([A-Za-z_][A-Za-z0-9_]{0,254})?$";
}

impl FromStr for VariableName {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        if let Some(name) = text.strip_prefix('$') {
            let fault = Fault::new("the name alone");
            return Err(match name.parse::<VariableName>() {
                Ok(VariableName(name)) if !name.is_empty() => fault.fix(name),
                Ok(_) | Err(_) => fault,
            });
        }
        let letters = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if text.starts_with(|c: char| c.is_ascii_digit()) || !text.chars().all(letters) {
            return Err(Fault::new("letters, digits and `_`"));
        }
        if text.len() > LONGEST_NAME {
            return Err(Fault::new("too long for a name"));
        }
        Ok(VariableName(text.to_owned()))
    }
}

impl Literal for TokenText {
    const KIND: &'static str = "token";
    const NOUN: &'static str = "a network token";
    const EXPECTED: &'static str = "a token as `edgevpn token new` prints it, or \"\" for none";
    const PATTERN: &'static str = "^[^\\u0000]*$";
}

impl FromStr for TokenText {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        if text.contains('\0') {
            return Err(Fault::new("a NUL byte"));
        }
        if text.len() > LONGEST_TOKEN {
            return Err(Fault::new("too long for a token"));
        }
        Ok(TokenText(text.to_owned()))
    }
}

impl fmt::Debug for TokenText {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "secret" })
    }
}

macro_rules! displayed {
    ($($type:ty),*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

displayed!(PathName, CredentialName, VariableName, TokenText);

literal!(PathName);
literal!(CredentialName);
literal!(VariableName);
literal!(TokenText);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_named_without_its_dollar() {
        let fault = "$SITE_TOKEN".parse::<VariableName>().expect_err("a dollar");
        assert_eq!(fault.fix.as_deref(), Some("SITE_TOKEN"));
        assert!("7UP".parse::<VariableName>().is_err());
        assert!("".parse::<VariableName>().is_ok());
    }

    #[test]
    fn a_credential_is_a_file_name() {
        assert!("../token".parse::<CredentialName>().is_err());
        assert!("..".parse::<CredentialName>().is_err());
        assert!("edgevpn.token".parse::<CredentialName>().is_ok());
    }

    #[test]
    fn a_token_is_not_shown_by_debug() {
        let token: TokenText = "b3RwOgogIGRodDoK".parse().expect("short enough");
        assert!(!format!("{token:?}").contains("b3Rw"));
    }
}
