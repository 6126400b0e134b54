//! Images: looked for, pulled, checked, and made of what a session has become.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bollard::models::{ContainerConfig, CreateImageInfo};
use bollard::query_parameters::{CommitContainerOptionsBuilder, CreateImageOptionsBuilder};
use dwell_core::id::SessionId;
use futures_util::StreamExt;

use super::container::container_name;
use super::{Engine, is_missing};

/// How long an image may take to be made of a container.
const COMMIT_WITHIN: Duration = Duration::from_secs(600);
/// How often it is said how far a pull is.
const SAY_EVERY: Duration = Duration::from_secs(2);

impl Engine {
    /// See to it that `image` is there and can run here. `says` is told how that goes,
    /// if it takes any time.
    ///
    /// # Errors
    /// A sentence, when it cannot be had or not run.
    pub async fn fetch(&self, image: &str, mut says: impl FnMut(String)) -> Result<(), String> {
        let found = match self.docker.inspect_image(image).await {
            Ok(found) => found,
            Err(error) if is_missing(&error) => {
                self.pull(image, &mut says).await?;
                let found = self.docker.inspect_image(image).await;
                found.map_err(|error| self.sentence(&error))?
            }
            Err(error) => return Err(self.sentence(&error)),
        };
        let ours = architecture();
        match found.architecture.as_deref() {
            Some(theirs) if !theirs.is_empty() && theirs != ours => Err(format!(
                "The image {image} is for {theirs}, and this host is {ours}; use one that was \
                 built for {ours}"
            )),
            Some(_) | None => Ok(()),
        }
    }

    async fn pull(&self, image: &str, says: &mut impl FnMut(String)) -> Result<(), String> {
        says(format!("The image {image} is not there; pulling it"));
        let began = Instant::now();
        let options = CreateImageOptionsBuilder::new().from_image(&with_tag(image));
        let mut news = self
            .docker
            .create_image(Some(options.build()), None, None)
            .boxed();
        let mut layers = Layers::default();
        let mut said_at = began;
        let failed = |why: String| format!("The image {image} could not be pulled: {why}");
        while let Some(piece) = news.next().await {
            let piece = piece.map_err(|error| failed(self.sentence(&error)))?;
            if let Some(error) = piece
                .error_detail
                .as_ref()
                .and_then(|it| it.message.clone())
            {
                return Err(failed(error));
            }
            layers.heard(piece);
            if said_at.elapsed() >= SAY_EVERY {
                said_at = Instant::now();
                says(format!("Pulling {image}: {}", layers.so_far()));
            }
        }
        let seconds = began.elapsed().as_secs();
        says(format!("Pulled {image} in {seconds} s"));
        Ok(())
    }

    /// Make an image called `name` of what the container of a session has become.
    ///
    /// # Errors
    /// A sentence, when it cannot be made.
    pub async fn commit(&self, session: SessionId, name: &str) -> Result<String, String> {
        let (repository, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
        let options = CommitContainerOptionsBuilder::new()
            .container(&container_name(session))
            .repo(repository)
            .tag(tag)
            // Else files that are being written would be torn.
            .pause(true);
        let made = self
            .docker
            .clone()
            .with_timeout(COMMIT_WITHIN)
            .commit_container(options.build(), ContainerConfig::default())
            .await;
        made.map(|made| made.id)
            .map_err(|error| self.sentence(&error))
    }
}

/// How far each layer of a pull is.
#[derive(Default)]
struct Layers(BTreeMap<String, (i64, i64)>);

impl Layers {
    fn heard(&mut self, news: CreateImageInfo) {
        if let (Some(layer), Some(progress)) = (news.id, news.progress_detail)
            && let (Some(current), Some(total)) = (progress.current, progress.total)
        {
            self.0.insert(layer, (current, total));
        }
    }

    fn so_far(&self) -> String {
        const MIB: i64 = 1 << 20;
        let current: i64 = self.0.values().map(|(current, _)| current).sum();
        let total: i64 = self.0.values().map(|(_, total)| total).sum();
        format!("{} of {} MiB in sight", current / MIB, total / MIB)
    }
}

/// Without a tag the engine would pull all there are.
fn with_tag(image: &str) -> String {
    let name = image.rsplit_once('/').map_or(image, |(_, name)| name);
    if name.contains([':', '@']) {
        image.to_owned()
    } else {
        format!("{image}:latest")
    }
}

/// This host's architecture as images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_a_tag_is_the_latest() {
        assert_eq!(with_tag("alpine"), "alpine:latest");
        assert_eq!(with_tag("host:5000/alpine"), "host:5000/alpine:latest");
        assert_eq!(with_tag("host:5000/alpine:3"), "host:5000/alpine:3");
        assert_eq!(with_tag("alpine@sha256:12"), "alpine@sha256:12");
    }
}
