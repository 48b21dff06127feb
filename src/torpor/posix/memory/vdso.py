"""The kernel's own code in every process: [vdso] and the pages of data beside it.

The program has addresses of the old vDSO in its tables. If this kernel's is byte for byte the same, the stub's is
moved to where the old one was (mremap(2) keeps the kernel's idea of where it is).
"""

from __future__ import annotations

NAMES = ("[vvar]", "[vvar_vclock]", "[vdso]")
