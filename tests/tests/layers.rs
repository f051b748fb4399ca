//! Imports go one way: no file of the engine or of user space imports one that imports it, directly or by others. The engine's
//! top-level modules also stand in an order.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Item, UseTree,
    visit::{self, Visit},
};

/// A module's path below its crate.
type Module = Vec<String>;

/// A crate's modules: which names of its own they import, and from where.
struct Crate {
    modules: BTreeMap<Module, syn::File>,
}

impl Crate {
    fn read(root: &Path) -> Self {
        let mut modules = BTreeMap::new();
        read_module(root, &root.join("lib.rs"), Vec::new(), &mut modules);
        Self { modules }
    }

    /// The module that a path leads to from `from`, through what modules on the way re-export; `None` if it leads out of the crate.
    fn resolve(&self, from: &Module, path: &[String], depth: usize) -> Option<Module> {
        let mut at = match path.first()?.as_str() {
            "crate" => Vec::new(),
            "self" => from.clone(),
            "super" => from[..from.len().checked_sub(1)?].to_vec(),
            name if self.modules.contains_key(&child(from, name)) => child(from, name),
            _ => return None,
        };
        for (nth, name) in path.iter().enumerate().skip(1) {
            if name == "super" {
                at.pop()?;
            } else if self.modules.contains_key(&child(&at, name)) {
                at = child(&at, name);
            } else {
                // An item of this module, or one that it has from elsewhere.
                let there = self.imports(&at).into_iter().find(|(import, _)| import == name);
                return match there {
                    Some((_, its)) if depth < 8 => {
                        let rest = its.into_iter().chain(path[nth + 1..].iter().cloned()).collect::<Vec<_>>();
                        self.resolve(&at, &rest, depth + 1)
                    }
                    _ => Some(at),
                };
            }
        }
        Some(at)
    }

    /// Names that a module imports, with their paths.
    fn imports(&self, module: &Module) -> Vec<(String, Vec<String>)> {
        let mut imports = Vec::new();
        for item in &self.modules[module].items {
            if let Item::Use(item) = item {
                leaves(&item.tree, Vec::new(), &mut imports);
            }
        }
        imports
    }

    /// Modules that each module imports from.
    fn edges(&self) -> BTreeMap<&Module, BTreeSet<Module>> {
        let edges_of = |module: &Module, file: &syn::File| {
            let mut paths = Paths(Vec::new());
            file.items.iter().filter(|item| !is_test(item)).for_each(|item| paths.visit_item(item));
            let imports = self.imports(module);
            let used = paths.0.iter().filter_map(|path| match imports.iter().find(|(name, _)| *name == path[0]) {
                // A module that uses what it hands on imports it too.
                Some((_, its)) => self.resolve(module, &[its, &path[1..]].concat(), 0),
                None if path.len() > 1 => self.resolve(module, path, 0),
                None => None,
            });
            used.filter(|target| target != module).collect()
        };
        self.modules.iter().map(|(module, file)| (module, edges_of(module, file))).collect()
    }
}

fn child(module: &Module, name: &str) -> Module {
    module.iter().cloned().chain([name.to_owned()]).collect()
}

fn read_module(dir: &Path, file: &Path, module: Module, modules: &mut BTreeMap<Module, syn::File>) {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    for item in &parsed.items {
        let Item::Mod(inner) = item else { continue };
        if inner.content.is_some() || is_test(item) {
            continue;
        }
        let name = inner.ident.to_string();
        let (flat, nested) = (dir.join(format!("{name}.rs")), dir.join(&name));
        let file: PathBuf = if flat.exists() { flat } else { nested.join("mod.rs") };
        read_module(&nested, &file, child(&module, &name), modules);
    }
    modules.insert(module, parsed);
}

/// Whether an item is compiled for tests alone.
fn is_test(item: &Item) -> bool {
    let Item::Mod(module) = item else { return false };
    module.attrs.iter().any(|attr| {
        attr.path().is_ident("cfg") && attr.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

/// Name and path of each leaf of a `use`.
fn leaves(tree: &UseTree, path: Vec<String>, all: &mut Vec<(String, Vec<String>)>) {
    let longer = |name: &syn::Ident| path.iter().cloned().chain([name.to_string()]).collect::<Vec<_>>();
    match tree {
        UseTree::Path(inner) => leaves(&inner.tree, longer(&inner.ident), all),
        UseTree::Name(name) if name.ident == "self" => {
            all.push((path.last().cloned().unwrap_or_default(), path));
        }
        UseTree::Name(name) => all.push((name.ident.to_string(), longer(&name.ident))),
        UseTree::Rename(rename) => all.push((rename.rename.to_string(), longer(&rename.ident))),
        UseTree::Glob(_) => all.push(("*".to_owned(), path)),
        UseTree::Group(group) => group.items.iter().for_each(|item| leaves(item, path.clone(), all)),
    }
}

/// All paths of a file that may lead to a module.
struct Paths(Vec<Vec<String>>);

impl<'ast> Visit<'ast> for Paths {
    /// What a module hands on is no use of it.
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if matches!(item.vis, syn::Visibility::Inherited) {
            let mut imports = Vec::new();
            leaves(&item.tree, Vec::new(), &mut imports);
            self.0.extend(imports.into_iter().map(|(_, path)| path));
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.0.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }
}

/// Modules that import themselves by way of others.
fn in_circles(edges: &BTreeMap<&Module, BTreeSet<Module>>) -> Vec<String> {
    let imports_itself = |module: &Module| {
        let (mut reached, mut left) = (BTreeSet::new(), vec![module]);
        while let Some(module) = left.pop() {
            let targets = edges.get(module).into_iter().flatten();
            left.extend(targets.filter(|target| reached.insert(*target)));
        }
        reached.contains(module)
    };
    edges.keys().filter(|module| imports_itself(module)).map(|module| module.join("::")).collect()
}

fn source(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(of).join("src")
}

#[test]
fn no_file_of_the_engine_imports_in_a_circle() {
    let engine = Crate::read(&source("bg-ebpf"));
    assert!(engine.modules.len() > 20, "{}", engine.modules.len());
    assert_eq!(in_circles(&engine.edges()), Vec::<String>::new());
}

#[test]
fn no_file_of_user_space_imports_in_a_circle() {
    let user_space = Crate::read(&source("bg-userspace"));
    assert!(user_space.modules.len() > 40, "{}", user_space.modules.len());
    assert_eq!(in_circles(&user_space.edges()), Vec::<String>::new());
}

/// The engine's top-level modules; each imports from those before it alone.
const LAYERS: [&str; 12] =
    ["hint", "wire", "unpack", "flow", "rows", "step", "world", "hook", "verdict", "policy", "egress", "path"];

#[test]
fn the_engines_layers_import_downwards() {
    let engine = Crate::read(&source("bg-ebpf"));
    let layer = |module: &Module| {
        let name = module.first()?;
        Some(LAYERS.iter().position(|layer| layer == name).unwrap_or_else(|| panic!("{name} is in no layer")))
    };
    for (module, targets) in engine.edges() {
        let Some(own) = layer(module) else { continue };
        for target in targets {
            let its = layer(&target).unwrap_or_else(|| panic!("{} imports lib.rs", module.join("::")));
            assert!(its <= own, "{} imports {}", module.join("::"), target.join("::"));
        }
    }
}
