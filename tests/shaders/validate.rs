//! What a shader must be: valid WGSL by naga, and within the conventions that the launcher relies on.

use naga::front::wgsl;
use naga::valid::{Capabilities, ValidationFlags, Validator};

use crate::preprocess::Text;

/// WebGPU's default `maxStorageBuffersPerShaderStage`.
const MAX_STORAGE: usize = 8;

/// Checks one variant; the error begins with file and line.
pub fn validate(text: &Text, defines: &[String]) -> Result<(), String> {
    let at = |location: Option<naga::SourceLocation>| match location
        .and_then(|l| text.origin.get(l.line_number as usize - 1).map(|o| (o, l.line_position)))
    {
        Some(((path, line), column)) => format!("{}:{line}:{column}", path.display()),
        None => text.origin.first().map(|(path, _)| path.display().to_string()).unwrap_or_default(),
    };
    let module = wgsl::parse_str(&text.text)
        .map_err(|e| format!("{}: {}", at(e.location(&text.text)), e.emit_to_string(&text.text)))?;
    let has = |name: &str| defines.iter().any(|d| d == name);
    let mut capabilities = Capabilities::empty();
    if has("F16") || (has("COOP") && has("HALF")) {
        capabilities |= Capabilities::SHADER_FLOAT16 | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    } else {
        // unpack2x16float is core WGSL.
        capabilities |= Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    }
    if has("SUBGROUP") {
        capabilities |= Capabilities::SUBGROUP;
    }
    if has("COOP") {
        capabilities |= Capabilities::SUBGROUP | Capabilities::COOPERATIVE_MATRIX;
    }
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .map_err(|e| format!("{}: {}", at(e.location(&text.text)), e.emit_to_string(&text.text)))?;

    for (handle, variable) in module.global_variables.iter() {
        let fail = |what: &str| {
            let span = module.global_variables.get_span(handle).location(&text.text);
            Err(format!("{}: {what}", at(Some(span))))
        };
        match variable.space {
            naga::AddressSpace::Storage { access } => {
                if access != naga::StorageAccess::LOAD | naga::StorageAccess::STORE {
                    return fail("storage is bound read_write: usage is validated for whole buffers");
                }
                if variable.binding.as_ref().is_none_or(|b| b.group != 0) {
                    return fail("everything is bound in @group(0)");
                }
            }
            naga::AddressSpace::Uniform if variable.binding.as_ref().is_none_or(|b| b.group != 0) => {
                return fail("everything is bound in @group(0)");
            }
            _ => {}
        }
    }
    if module.entry_points.is_empty() {
        return Err(format!("{}: no entry point", at(None)));
    }
    for (i, entry) in module.entry_points.iter().enumerate() {
        let used = info.get_entry_point(i);
        let storage = module
            .global_variables
            .iter()
            .filter(|(handle, v)| matches!(v.space, naga::AddressSpace::Storage { .. }) && !used[*handle].is_empty())
            .count();
        if storage > MAX_STORAGE {
            return Err(format!("{}: {} binds {storage} storage buffers, at most {MAX_STORAGE}", at(None), entry.name));
        }
    }
    Ok(())
}
