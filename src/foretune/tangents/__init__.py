"""One pass over the model collects its tangents, from which the first-order behaviour of every adapter follows.

Tangents are the inputs of a model's linear layers, and the gradients at the layers' outputs, for every example.
"""

from foretune.tangents.adapters import Adapter as Adapter
from foretune.tangents.adapters import adapted as adapted
from foretune.tangents.adapters import check_forecastable as check_forecastable
from foretune.tangents.adapters import draw_adapters as draw_adapters
from foretune.tangents.adapters import lora_layers as lora_layers
from foretune.tangents.adapters import read_adapters as read_adapters
from foretune.tangents.basis import centred as centred
from foretune.tangents.basis import centring as centring
from foretune.tangents.collect import collect as collect
from foretune.tangents.collect import select_layers as select_layers
from foretune.tangents.experts import mixture_of_experts as mixture_of_experts
from foretune.tangents.head import Head as Head
from foretune.tangents.hooks import evaluating as evaluating
from foretune.tangents.hooks import layer_gradients as layer_gradients
from foretune.tangents.outputs import all_outputs as all_outputs
from foretune.tangents.outputs import batches as batches
from foretune.tangents.padding import check_padding_invariant as check_padding_invariant
from foretune.tangents.padding import check_runs as check_runs
from foretune.tangents.products import ShortLayers as ShortLayers
from foretune.tangents.products import product_dtype as product_dtype
from foretune.tangents.products import short_products as short_products
from foretune.tangents.rules import layer_rule as layer_rule
from foretune.tangents.tangents import Entry as Entry
from foretune.tangents.tangents import Tangents as Tangents
