//! Jobs in images: by options of `sbatch` that Pyxis adds, or behind `apptainer exec`.

use dwell_core::machine::Container;

use crate::launcher::handout::quoted;

/// What runs images on a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainersBy {
    /// The plugin of `srun` and `sbatch` (`--container-image`).
    Pyxis,
    /// The program.
    Apptainer,
}

/// What has a job run in an image.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct InImage {
    /// Options of `sbatch` and what they are set to: the whole job is in the image.
    pub options: Vec<(&'static str, Option<String>)>,
    /// The words of a command that the agent, whose path is `$1`, is put behind.
    pub within: Option<String>,
}

impl InImage {
    /// In this one, where the agent is at that path of the nodes if not fetched by the job.
    ///
    /// # Errors
    /// A sentence, when that cannot be had.
    pub(super) fn of(
        container: &Container,
        by: Option<ContainersBy>,
        agent: Option<&str>,
    ) -> Result<Self, String> {
        let by = by.ok_or(
            "This cluster runs no images; set containers = \"pyxis\" or \"apptainer\" in its \
             [[launcher]]",
        )?;
        if !container.capabilities.is_empty() {
            return Err(
                "Slurm's jobs have no capabilities to give to a container; leave out the machine's, \
                 or run it where Docker or Kubernetes does"
                    .to_owned(),
            );
        }
        Ok(match by {
            ContainersBy::Pyxis => Self {
                options: pyxis(container, agent),
                within: None,
            },
            ContainersBy::Apptainer => Self {
                options: Vec::new(),
                within: Some(apptainer(&container.image)),
            },
        })
    }
}

fn pyxis(container: &Container, agent: Option<&str>) -> Vec<(&'static str, Option<String>)> {
    // What is written is gone with the job.
    let root = if container.read_only {
        "container-readonly"
    } else {
        "container-writable"
    };
    let mut options = vec![
        ("container-image", Some(enroot_name(&container.image))),
        (root, None),
    ];
    // Its shell is in the image already when it looks for the agent.
    options.extend(agent.map(|path| ("container-mounts", Some(format!("{path}:{path}")))));
    options
}

/// The image as Pyxis takes it: a file, or `REGISTRY#IMAGE`, where Docker Hub is the registry
/// that is not named. Before its fourth version enroot, which pulls for it, takes
/// `REGISTRY/IMAGE` for one of Docker Hub.
fn enroot_name(image: &str) -> String {
    let image = image.strip_prefix("docker://").unwrap_or(image);
    let is_file = image.starts_with(['/', '.']);
    if is_file || image.contains('#') || image.contains("://") {
        return image.to_owned();
    }
    match image.split_once('/') {
        Some(("docker.io" | "index.docker.io", of_hub)) => of_hub.to_owned(),
        Some((registry, name)) if registry.contains(['.', ':']) || registry == "localhost" => {
            format!("{registry}#{name}")
        }
        _ => image.to_owned(),
    }
}

fn apptainer(image: &str) -> String {
    // A file, or the address of one that is not Docker's.
    let is_named_whole = image.starts_with('/') || image.contains("://");
    let scheme = if is_named_whole { "" } else { "docker://" };
    let image = quoted(&format!("{scheme}{image}"));
    // The agent keeps the session's directory in the latter, which need not be `/tmp`.
    format!("apptainer exec --nv --bind \"$1\" ${{TMPDIR:+--bind \"$TMPDIR\"}} {image}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(image: &str) -> Container {
        Container {
            image: image.to_owned(),
            read_only: false,
            capabilities: Vec::new(),
        }
    }

    #[test]
    fn pyxis_is_told_of_an_image_as_enroot_names_it() {
        for (image, name) in [
            ("debian:12", "debian:12"),
            ("jupyter/base-notebook", "jupyter/base-notebook"),
            ("quay.io/jupyter/lab:1", "quay.io#jupyter/lab:1"),
            ("docker://quay.io/jupyter/lab", "quay.io#jupyter/lab"),
            ("localhost:5000/lab", "localhost:5000#lab"),
            ("docker.io/jupyter/lab", "jupyter/lab"),
            ("me@nvcr.io#nvidia/pytorch:1", "me@nvcr.io#nvidia/pytorch:1"),
            ("/images/lab.sqsh", "/images/lab.sqsh"),
            ("dockerd://lab", "dockerd://lab"),
        ] {
            assert_eq!(enroot_name(image), name, "{image}");
        }
    }

    #[test]
    fn pyxis_gets_the_agent_into_the_image_and_keeps_what_is_not_to_be_written() {
        let agent = Some("/opt/dwell/dwell-agent");
        let mut container = of("debian:12");
        let in_image = InImage::of(&container, Some(ContainersBy::Pyxis), agent).unwrap();
        let image = ("container-image", Some("debian:12".to_owned()));
        let mounted = "/opt/dwell/dwell-agent:/opt/dwell/dwell-agent";
        let mounts = ("container-mounts", Some(mounted.to_owned()));
        let options = [image.clone(), ("container-writable", None), mounts];
        assert_eq!(in_image.options, options);
        container.read_only = true;
        let in_image = InImage::of(&container, Some(ContainersBy::Pyxis), None).unwrap();
        assert_eq!(in_image.options, [image, ("container-readonly", None)]);
    }

    #[test]
    fn what_a_job_cannot_give_is_refused() {
        let mut container = of("debian:12");
        let refused = InImage::of(&container, None, None).unwrap_err();
        assert!(refused.contains("set containers"), "{refused}");
        container.capabilities.push("SYS_PTRACE".to_owned());
        let refused = InImage::of(&container, Some(ContainersBy::Apptainer), None).unwrap_err();
        assert!(refused.contains("no capabilities"), "{refused}");
    }
}
