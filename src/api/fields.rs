//! The values that fields of requests can have. Each is checked where it is read,
//! so that none that is too long or absurd gets further, and says in the OpenAPI
//! document what it may be.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use dwell_core::machine::{Access, AppCommand};
use dwell_core::time::Timestamp;
use serde::de::{Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::openapi::schema::{ArrayBuilder, OneOfBuilder};
use utoipa::openapi::{KnownFormat, Object, ObjectBuilder, RefOr, Schema, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};

/// The longest single string, in characters: with four bytes each it is still
/// within what Linux takes as one argument or variable.
const TEXT_CHARS_MAX: usize = 16_384;
/// The most words of a command.
const WORDS_MAX: usize = 1_000;
/// The most variables of an environment.
const VARIABLES_MAX: usize = 256;
/// The last second since 1970 that a query can name, in the year 9999.
const SECONDS_MAX: usize = 253_402_207_200;

// --- Text -----------------------------------------------------------------------

/// A string of so many characters, without NUL. What else it must be is said three
/// times: as a pattern for the OpenAPI document, as a check, and as a sentence.
macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $chars:expr, $pattern:literal, $check:expr, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
        #[serde(try_from = "String")]
        pub(super) struct $name(pub String);

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                let check: fn(&str) -> bool = $check;
                check_length(&text, $chars)?;
                if text.contains('\0') || !check(&text) {
                    return Err($expected.to_owned());
                }
                Ok(Self(text))
            }
        }

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                ObjectBuilder::new()
                    .schema_type(Type::String)
                    .min_length(Some(*$chars.start()))
                    .max_length(Some(*$chars.end()))
                    .pattern(Some($pattern))
                    .into()
            }
        }

        impl ToSchema for $name {}
    };
}

fn check_length(text: &str, chars: std::ops::RangeInclusive<usize>) -> Result<(), String> {
    let length = text.chars().count();
    if length < *chars.start() {
        return Err("must not be empty".to_owned());
    }
    if length > *chars.end() {
        return Err(format!(
            "must have at most {} characters; this has {length}",
            chars.end()
        ));
    }
    Ok(())
}

text!(
    /// What people call a thing.
    Name, 1..=200, r"^[^\u0000]*$", |_| true, "must not contain NUL"
);
text!(
    /// The name of a GPU type.
    GpuName, 1..=100, r"^[^\u0000]*$", |_| true, "must not contain NUL"
);
text!(
    /// A program, an argument, or a line for the shell.
    Word, 0..=TEXT_CHARS_MAX, r"^[^\u0000]*$", |_| true, "must not contain NUL"
);
text!(
    /// The name of an environment variable.
    VariableName,
    1..=200,
    "^[A-Za-z_][A-Za-z0-9_]*$",
    |name| {
        !name.starts_with(|first: char| first.is_ascii_digit())
            && name
                .chars()
                .all(|char| char.is_ascii_alphanumeric() || char == '_')
    },
    "the name of a variable has letters, digits and _, and does not begin with a digit"
);
text!(
    /// An absolute path on the session's host.
    Workdir,
    1..=4_096,
    r"^/[^\u0000]*$",
    |path| path.starts_with('/'),
    "must be an absolute path: one that begins with /"
);
text!(
    /// A path of the app, as in its URL.
    ReadyPath,
    1..=2_000,
    "^/[!-~]*$",
    |path| path.starts_with('/') && path.chars().all(|char| char.is_ascii_graphic()),
    "must begin with / and have no blanks and no other than ASCII characters"
);

text!(
    /// The name of a container image, as its engine knows it.
    ImageName,
    1..=500,
    r"^[!-~]+$",
    |name| name.chars().all(|char| char.is_ascii_graphic()),
    "must have no blanks and no other than ASCII characters"
);
text!(
    /// The name of a Linux capability, without `CAP_`.
    Capability,
    1..=40,
    "^[A-Z_]+$",
    |name| name.chars().all(|char| char.is_ascii_uppercase() || char == '_'),
    "must be the name of a capability in capital letters, such as NET_BIND_SERVICE"
);

// --- Numbers --------------------------------------------------------------------

/// A whole number from `MIN` to `MAX`. `15.0` is one too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Whole<const MIN: u32, const MAX: u32>(pub u32);

/// Minutes; 0 says the same as none.
pub(super) type Minutes = Whole<0, { u32::MAX }>;
/// Minutes to add.
pub(super) type MoreMinutes = Whole<1, { u32::MAX }>;
/// How many rows to answer with.
pub(super) type Count = Whole<1, 1_000>;

impl<'de, const MIN: u32, const MAX: u32> Deserialize<'de> for Whole<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        struct Number<const MIN: u32, const MAX: u32>;

        impl<const MIN: u32, const MAX: u32> Visitor<'_> for Number<MIN, MAX> {
            type Value = u32;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from {MIN} to {MAX}")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<u32, E> {
                u32::try_from(number)
                    .ok()
                    .filter(|number| (MIN..=MAX).contains(number))
                    .ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<u32, E> {
                u64::try_from(number)
                    .map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))
                    .and_then(|number| self.visit_u64(number))
            }

            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "checked to be a whole number within range"
            )]
            fn visit_f64<E: Error>(self, number: f64) -> Result<u32, E> {
                if number.fract() == 0.0 && (f64::from(MIN)..=f64::from(MAX)).contains(&number) {
                    return Ok(number as u32);
                }
                Err(E::invalid_value(Unexpected::Float(number), &self))
            }
        }

        source.deserialize_u64(Number::<MIN, MAX>).map(Self)
    }
}

/// A port that an app can listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Whole<1, 65535>")]
pub(super) struct Port(pub u16);

impl TryFrom<Whole<1, 65_535>> for Port {
    type Error = std::num::TryFromIntError;

    fn try_from(port: Whole<1, 65_535>) -> Result<Self, Self::Error> {
        u16::try_from(port.0).map(Self)
    }
}

impl PartialSchema for Port {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1))
            .maximum(Some(u16::MAX))
            .into()
    }
}

impl ToSchema for Port {}

// --- What runs ------------------------------------------------------------------

/// What is started: words, or a line for `/bin/sh`. `{port}` in either stands for
/// the port to listen on; so does `$PORT` in the app's environment.
#[derive(Clone, Debug)]
pub(super) struct Command(pub AppCommand);

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = AppCommand;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of words, or a line for the shell")
            }

            fn visit_str<E: Error>(self, line: &str) -> Result<AppCommand, E> {
                let line = Word::try_from(line.to_owned()).map_err(E::custom)?;
                Ok(AppCommand::Shell(line.0))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut words: A) -> Result<AppCommand, A::Error> {
                let mut argv = Vec::new();
                while let Some(Word(word)) = words.next_element()? {
                    if argv.len() == WORDS_MAX {
                        return Err(A::Error::custom(format!(
                            "must have at most {WORDS_MAX} words"
                        )));
                    }
                    argv.push(word);
                }
                Ok(AppCommand::Argv(argv))
            }
        }

        let command = source.deserialize_any(Either)?;
        if command.is_empty() {
            return Err(D::Error::custom("must name what to run"));
        }
        Ok(Self(command))
    }
}

impl PartialSchema for Command {
    fn schema() -> RefOr<Schema> {
        let line = ObjectBuilder::new()
            .schema_type(Type::String)
            .max_length(Some(TEXT_CHARS_MAX))
            .pattern(Some(r"\S"))
            .build();
        let words = ArrayBuilder::new()
            .prefix_items([line.clone()])
            .items(Word::schema())
            .min_items(Some(1))
            .max_items(Some(WORDS_MAX));
        OneOfBuilder::new().item(line).item(words).into()
    }
}

impl ToSchema for Command {}

/// The app's environment variables.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "BTreeMap<VariableName, Word>")]
pub(super) struct Environment(pub BTreeMap<String, String>);

impl TryFrom<BTreeMap<VariableName, Word>> for Environment {
    type Error = String;

    fn try_from(variables: BTreeMap<VariableName, Word>) -> Result<Self, String> {
        if variables.len() > VARIABLES_MAX {
            return Err(format!("must have at most {VARIABLES_MAX} variables"));
        }
        let plain = variables
            .into_iter()
            .map(|(name, value)| (name.0, value.0))
            .collect();
        Ok(Self(plain))
    }
}

impl PartialSchema for Environment {
    fn schema() -> RefOr<Schema> {
        let RefOr::T(names) = VariableName::schema() else {
            return VariableName::schema();
        };
        ObjectBuilder::new()
            .property_names(Some(names))
            .additional_properties(Some(Word::schema()))
            .max_properties(Some(VARIABLES_MAX))
            .into()
    }
}

impl ToSchema for Environment {}

/// Who may use a session's URL: who has the `link`, or who has a key (`private`).
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Access)]
pub(super) enum AccessName {
    /// Who has the link.
    Link,
    /// Who has a key of the session's owner.
    Private,
}

impl From<AccessName> for Access {
    fn from(name: AccessName) -> Self {
        match name {
            AccessName::Link => Self::Link,
            AccessName::Private => Self::Private,
        }
    }
}

impl From<Access> for AccessName {
    fn from(access: Access) -> Self {
        match access {
            Access::Link => Self::Link,
            Access::Private => Self::Private,
        }
    }
}

/// A field that is part of the contract and not built yet: only `null` will do.
#[derive(Clone, Copy, Debug)]
pub(super) enum NotYet {}

/// What is said of such a field.
const NOT_YET: &str = "not supported by this server yet";

/// What the OpenAPI document says of such a field.
pub(super) fn only_null() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::Null)
        .description(Some("Not supported by this server yet."))
        .build()
}

impl<'de> Deserialize<'de> for NotYet {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(D::Error::custom(NOT_YET))
    }
}

/// Names of secrets: none are kept yet.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub(super) struct NoSecrets;

impl TryFrom<Vec<String>> for NoSecrets {
    type Error = &'static str;

    fn try_from(names: Vec<String>) -> Result<Self, Self::Error> {
        names.is_empty().then_some(Self).ok_or(NOT_YET)
    }
}

/// Whether files are kept at the end: not yet.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Save;

impl TryFrom<String> for Save {
    type Error = &'static str;

    fn try_from(when: String) -> Result<Self, Self::Error> {
        match when.as_str() {
            "never" => Ok(Self),
            "on_end" => Err(NOT_YET),
            _ => Err("must be never or on_end"),
        }
    }
}

// --- Queries --------------------------------------------------------------------

/// `true` or `false` as people and programs write them in a query.
pub(super) fn flag<'de, D: Deserializer<'de>>(source: D) -> Result<bool, D::Error> {
    let text = Cow::<str>::deserialize(source)?;
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(D::Error::custom("must be true or false")),
    }
}

/// A moment as a query writes it: RFC 3339, or seconds since 1970.
pub(super) fn moment<'de, D: Deserializer<'de>>(source: D) -> Result<Option<Timestamp>, D::Error> {
    let text = String::deserialize(source)?;
    // Without an offset it is taken for UTC.
    let utc = || jiff::tz::Offset::UTC.to_timestamp(text.parse().ok()?).ok();
    let seconds = || {
        let seconds: f64 = text.parse().ok().filter(|seconds| *seconds >= 0.0)?;
        jiff::Timestamp::from_duration(jiff::SignedDuration::try_from_secs_f64(seconds).ok()?).ok()
    };
    text.parse::<jiff::Timestamp>()
        .ok()
        .or_else(utc)
        .or_else(seconds)
        .map(|at| Some(Timestamp(at.as_millisecond())))
        .ok_or_else(|| {
            D::Error::custom("must be a date and time (2026-11-23T12:00:00Z) or seconds since 1970")
        })
}

/// What the OpenAPI document says of such a moment.
pub(super) fn moment_schema() -> RefOr<Schema> {
    let date_time = ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)));
    let seconds = ObjectBuilder::new()
        .schema_type(Type::Number)
        .minimum(Some(0))
        .maximum(Some(SECONDS_MAX));
    OneOfBuilder::new().item(date_time).item(seconds).into()
}

// --- Answers --------------------------------------------------------------------

/// A moment as answers write it: RFC 3339 in UTC with milliseconds, ending in `Z`.
#[derive(Clone, Copy, Debug)]
pub(super) struct DateTime(pub Timestamp);

impl Serialize for DateTime {
    fn serialize<S: Serializer>(&self, target: S) -> Result<S::Ok, S::Error> {
        let at = jiff::Timestamp::from_millisecond(self.0.0).map_err(serde::ser::Error::custom)?;
        target.collect_str(&format_args!("{at:.3}"))
    }
}

impl PartialSchema for DateTime {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
            .into()
    }
}

impl ToSchema for DateTime {}
