"""An import-linter contract that import-linter lacks: a package may import what is listed, and nothing else."""

import sys

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class OnlyContract(Contract):
    """`source_module` and what it holds import each other, the standard library and `allowed_modules` only."""

    type_name = "only"
    source_module = fields.StringField()
    allowed_modules = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        inside = {self.source_module, *graph.find_descendants(self.source_module)}
        allowed = inside | {*self.allowed_modules} | sys.stdlib_module_names
        found = sorted(
            (importer, imported)
            for importer in inside
            for imported in graph.find_modules_directly_imported_by(importer)
            if imported not in allowed
        )
        return ContractCheck(kept=not found, metadata={"found": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for importer, imported in check.metadata["found"]:
            output.print_error(f"{importer} imports {imported}, which is not allowed.")
