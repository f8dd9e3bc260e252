//! Writing the weights of a model's folder: one safetensors file, or several and an index of them, as transformers has it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use safetensors::Dtype;
use serde_json::json;

use super::safetensors::write_safetensors_with;
use crate::durable;
use crate::error::Result;

/// A tensor of a file: name, type and shape.
pub type Info = (String, Dtype, Vec<usize>);

/// Writes tensors into `model.safetensors` of the folder `dir`, or, where they take more than `most` bytes together, into files
/// of at most that with an index. A group of tensors is never split. `fill(i, out)` writes the bytes of the `i`-th, counted over
/// all groups; it is called file by file. Returns the number of files.
pub fn write_shards(
    dir: &Path,
    groups: Vec<Vec<Info>>,
    most: u64,
    fill: &mut dyn FnMut(usize, &mut dyn Write) -> Result<()>,
) -> Result<usize> {
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = |info: &Info| (info.2.iter().product::<usize>() * info.1.bitsize() / 8) as u64;
    let (mut files, mut first): (Vec<(usize, Vec<Info>)>, usize) = (Vec::new(), 0);
    let (mut room, mut total) = (0, 0);
    for group in groups {
        let (own, next): (u64, usize) = (group.iter().map(bytes).sum(), first + group.len());
        total += own;
        match files.last_mut().filter(|_| own <= room) {
            Some((_, file)) => file.extend(group),
            None => {
                files.push((first, group));
                room = most.max(own);
            }
        }
        room -= own;
        first = next;
    }
    if files.len() <= 1 {
        let infos = files.pop().map_or(Vec::new(), |(_, infos)| infos);
        write_safetensors_with(dir.join("model.safetensors"), &metadata, infos, fill)?;
        return Ok(1);
    }
    let (count, mut map) = (files.len(), BTreeMap::new());
    for (n, (first, infos)) in files.into_iter().enumerate() {
        let name = format!("model-{:05}-of-{count:05}.safetensors", n + 1);
        map.extend(infos.iter().map(|info| (info.0.clone(), name.clone())));
        write_safetensors_with(dir.join(name), &metadata, infos, &mut |i, out| fill(first + i, out))?;
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    durable::write(&dir.join("model.safetensors.index.json"), format!("{index:#}\n").as_bytes())?;
    Ok(count)
}
