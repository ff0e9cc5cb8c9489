"""The neural tangent kernel (NTK) as a sum of named blocks, and its eigenvalues (its spectrum)."""

from foretune.kernel.blocks import CallRows as CallRows
from foretune.kernel.blocks import Factors as Factors
from foretune.kernel.blocks import jacobian_a as jacobian_a
from foretune.kernel.blocks import jacobian_b as jacobian_b
from foretune.kernel.blocks import layer_kernels as layer_kernels
from foretune.kernel.bounds import Bound as Bound
from foretune.kernel.kernel import Kernel as Kernel
from foretune.kernel.kernel import ntk as ntk
from foretune.kernel.spectrum import Spectrum as Spectrum
from foretune.kernel.subsets import Change as Change
from foretune.kernel.subsets import Perturbation as Perturbation
from foretune.kernel.summary import RiskBounds as RiskBounds
from foretune.kernel.summary import Summary as Summary
from foretune.kernel.summary import alignment as alignment
from foretune.kernel.summary import risk_summary as risk_summary
from foretune.kernel.summary import subsampled_condition_number as subsampled_condition_number
from foretune.kernel.summary import summary as summary
