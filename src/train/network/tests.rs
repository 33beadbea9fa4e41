//! Descriptions of networks: their text forms, their shapes, what is refused.

#![forbid(unsafe_code)]

use super::*;
use crate::data::Task;
use crate::nn::{Cx, Module, Scope};
use crate::train::Architecture;
use crate::{Arena, DType, Device};

/// The network's answers to two examples, and its parameters' names and shapes.
fn built(network: &Network, example: &[usize], outputs: usize) -> (Vec<usize>, Vec<(String, Vec<usize>)>) {
    let arena = Arena::new(DType::F32, Device::cpu()).unwrap();
    let built = build(network, &Scope::new(&arena, 1), example, outputs).unwrap();
    let rows: Vec<usize> = [&[2], example].concat();
    let x = Tensor::full(rows, 0.5, DType::F32, Device::cpu()).unwrap();
    let y = built.modules.forward(&mut Cx::eval(), &network.see(&x, example).unwrap()).unwrap();
    let params = arena.params().unwrap();
    let total: usize = built.summary.iter().map(|row| row.parameters).sum();
    assert_eq!(total, arena.numel().unwrap(), "{network}: the summary counts every parameter once");
    (y.dims().to_vec(), params.iter().map(|p| (p.name(), p.shape().dims().to_vec())).collect())
}

fn names(params: &[(String, Vec<usize>)]) -> Vec<&str> {
    params.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn names_come_back() {
    for text in [
        "mlp:256,128",
        "mlp:",
        "mlp:1",
        "cnn",
        "cnn:8",
        "resnet:18",
        "resnet:50",
        "lstm:128x2",
        "gru:7",
        "rnn:3x1",
    ] {
        let network: Network = text.parse().unwrap();
        assert_eq!(network.to_string(), text);
        let written = toml::to_string(&network).unwrap();
        assert_eq!(toml::from_str::<Network>(&written).unwrap(), network, "{written}");
    }
    let bad = [
        "mlp",
        "mlp:0",
        "mlp:3,",
        "mlp:-1",
        "mlp:a",
        "resnet",
        "resnet:19",
        "cnn:",
        "cnn:0",
        "lstm",
        "lstm:0",
        "lstm:1x2x3",
        "lstm:4x0",
        "",
    ];
    for text in bad {
        assert_eq!(text.parse::<Network>().unwrap_err().kind(), ErrorKind::Argument, "{text}");
    }
    assert!(Network::by_name("resnet:18", Some(Hidden::Tanh), None).is_err());
    assert!(Network::by_name("lstm:8", Some(Hidden::Tanh), None).is_err());
    assert!(Network::by_name("cnn", None, Some(1.0)).is_err());
}

#[test]
fn every_kind_is_called_in_toml_as_in_messages() {
    let conv = || ConvLayer::new(1, 1);
    let transpose = || ConvTransposeLayer {
        out_channels: 1,
        kernel_size: Sizes([1, 1]),
        stride: Sizes([1, 1]),
        padding: Sizes([0, 0]),
        output_padding: Sizes([0, 0]),
        dilation: Sizes([1, 1]),
        groups: 1,
        bias: true,
    };
    fn average<const N: usize>() -> AvgPoolLayer<N> {
        let (kernel_size, padding) = (Sizes([1; N]), Sizes([0; N]));
        AvgPoolLayer { kernel_size, stride: None, padding, ceil_mode: false, count_include_pad: true }
    }
    let recurrent = || RecurrentLayer::new(1, 1);
    let kinds = [
        LayerKind::Linear { out_features: 1, bias: true },
        LayerKind::Conv1d(ConvLayer::new(1, 1)),
        LayerKind::Conv2d(conv()),
        LayerKind::ConvTranspose2d(transpose()),
        LayerKind::MaxPool1d(MaxPoolLayer::new(1)),
        LayerKind::MaxPool2d(MaxPoolLayer::new(1)),
        LayerKind::AvgPool1d(average()),
        LayerKind::AvgPool2d(average()),
        LayerKind::AdaptiveAvgPool1d { output_size: Sizes([1]) },
        LayerKind::AdaptiveAvgPool2d { output_size: Sizes([1, 1]) },
        LayerKind::Upsample { scale_factor: 2, mode: UpsampleMode::Bilinear },
        LayerKind::BatchNorm1d(BatchNormLayer::default()),
        LayerKind::BatchNorm2d(BatchNormLayer::default()),
        LayerKind::GroupNorm { num_groups: 1, eps: 1e-5 },
        LayerKind::LayerNorm { eps: 1e-5 },
        LayerKind::RmsNorm { eps: 1e-5 },
        LayerKind::Lstm(recurrent()),
        LayerKind::Gru(recurrent()),
        LayerKind::Rnn(recurrent()),
        LayerKind::Relu {},
        LayerKind::Gelu {},
        LayerKind::Silu {},
        LayerKind::Tanh {},
        LayerKind::Sigmoid {},
        LayerKind::Dropout { p: 0.5 },
        LayerKind::Flatten {},
        LayerKind::Sequential { layers: vec![] },
        LayerKind::Residual { layers: vec![], shortcut: vec![] },
    ];
    for kind in kinds {
        let table = toml::Table::try_from(&kind).unwrap();
        assert_eq!(table["type"].as_str(), Some(kind.type_name()));
        assert!(kind.to_string().starts_with(kind.type_name()));
    }
}

#[test]
fn an_mlp_has_the_names_and_shapes_of_a_sequential_in_pytorch() {
    let (shape, params) = built(&"mlp:5,4".parse().unwrap(), &[1, 2, 3], 2);
    assert_eq!(shape, [2, 2]);
    assert_eq!(names(&params), ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]);
    assert_eq!(params[0].1, [5, 6]);
    let dropped = Network::mlp(&[5], Hidden::Relu, 0.5);
    assert_eq!(names(&built(&dropped, &[3], 1).1), ["0.weight", "0.bias", "3.weight", "3.bias"]);
}

#[test]
fn an_architecture_of_format_1_is_read() {
    let old =
        "task = 'binary'\ninputs = 3\noutputs = 1\n[mlp]\nhidden = [4]\nactivation = 'tanh'\ndropout = 0.5\n";
    let read: Architecture = toml::from_str(old).unwrap();
    assert_eq!(read, Architecture::new(Task::Binary, &[3], 2, Network::mlp(&[4], Hidden::Tanh, 0.5)));
    assert_eq!(toml::from_str::<Architecture>(&toml::to_string(&read).unwrap()).unwrap(), read);
    assert!(toml::from_str::<Architecture>("task = 'binary'\ninputs = 3\noutputs = 1\n").is_err());
}

#[test]
fn a_cnn_halves_twice() {
    let cnn: Network = "cnn".parse().unwrap();
    assert_eq!(cnn.output_shape(&[1, 28, 28]).unwrap(), [128]);
    let (shape, params) = built(&cnn, &[3, 9, 8], 10);
    assert_eq!(shape, [2, 10]);
    assert_eq!(names(&params)[..4], ["0.weight", "0.bias", "3.weight", "3.bias"]);
    assert_eq!(
        (params[0].1.as_slice(), params[4].1.as_slice()),
        (&[32, 3, 3, 3][..], &[128, 64 * 2 * 2][..])
    );
    let error = cnn.output_shape(&[1, 3, 3]).unwrap_err();
    assert!(error.message().contains("layer 5") && error.message().contains("max_pool2d"), "{error}");
    assert!(cnn.seen(&[64]).unwrap_err().message().contains("pictures"));
}

#[test]
fn a_resnet_is_torchvisions_for_small_pictures() {
    let resnet: Network = "resnet:18".parse().unwrap();
    let (shape, params) = built(&resnet, &[3, 8, 8], 10);
    assert_eq!(shape, [2, 10]);
    // torchvision's resnet18(num_classes=10) has 11,181,642; its first convolution is 7 x 7 where this one's is 3 x 3.
    let total: usize = params.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    assert_eq!(total, 11_181_642 - 64 * 3 * (49 - 9));
    let names = names(&params);
    for name in [
        "conv1.weight",
        "bn1.bias",
        "layer1.1.bn2.weight",
        "layer2.0.downsample.0.weight",
        "layer4.0.downsample.1.bias",
        "fc.bias",
    ] {
        assert!(names.contains(&name), "{name}");
    }
    assert!(!names.iter().any(|name| name.starts_with("layer1.0.downsample")));
    // 23,528,522 for torchvision's resnet50(num_classes=10).
    let wide: Network = "resnet:50".parse().unwrap();
    let arena = Arena::new(DType::F32, Device::cpu()).unwrap();
    build(&wide, &Scope::new(&arena, 1), &[3, 8, 8], 10).unwrap();
    assert_eq!(arena.numel().unwrap(), 23_528_522 - 64 * 3 * (49 - 9));
}

#[test]
fn a_recurrent_network_sees_a_picture_row_by_row() {
    let lstm: Network = "lstm:6x2".parse().unwrap();
    assert_eq!(lstm.seen(&[3, 5, 4]).unwrap(), [5, 12]);
    assert_eq!(lstm.seen(&[7]).unwrap(), [7, 1]);
    let x: Vec<f32> = (0..2 * 2 * 3).map(|v| v as f32).collect();
    let x = Tensor::from_slice(&x, [1, 2, 2, 3], Device::cpu()).unwrap();
    let rows = lstm.see(&x, &[2, 2, 3]).unwrap();
    assert_eq!(rows.dims(), [1, 2, 6]);
    assert_eq!(rows.to_vec::<f32>().unwrap(), [0., 1., 2., 6., 7., 8., 3., 4., 5., 9., 10., 11.]);
    let (shape, params) = built(&lstm, &[1, 5, 4], 3);
    assert_eq!(shape, [2, 3]);
    assert!(names(&params).contains(&"lstm.weight_hh_l1") && names(&params).contains(&"fc.weight"));
}

const STACK: &str = r#"
input = "image"
[[layers]]
type = "conv2d"
name = "stem"
out_channels = 4
kernel_size = [3, 1]
padding = [1, 0]
[[layers]]
type = "residual"
layers = [{ type = "conv2d", out_channels = 4, kernel_size = 1, bias = false }, { type = "batch_norm2d" }]
[[layers]]
type = "avg_pool2d"
kernel_size = 2
[[layers]]
type = "upsample"
scale_factor = 2
mode = "bilinear"
[[layers]]
type = "group_norm"
num_groups = 2
"#;

#[test]
fn a_stack_is_described_layer_by_layer() {
    let network = Network::from_toml(STACK, "mine", None, None).unwrap().unwrap();
    let (shape, params) = built(&network, &[1, 6, 4], 3);
    assert_eq!(shape, [2, 3]);
    assert_eq!(names(&params)[..5], ["stem.weight", "stem.bias", "1.0.weight", "1.1.weight", "1.1.bias"]);
    assert_eq!(network.output_shape(&[1, 6, 4]).unwrap(), [4, 6, 4]);
    assert!(!network.needs_two_rows(&[1, 6, 4]).unwrap());
    let deep: Network = "resnet:18".parse().unwrap();
    assert!(deep.needs_two_rows(&[3, 8, 8]).unwrap() && !deep.needs_two_rows(&[3, 16, 16]).unwrap());
    let written = toml::to_string(&network).unwrap();
    assert_eq!(toml::from_str::<Network>(&written).unwrap(), network, "{written}");
    assert!(Network::from_toml(STACK, "mine", Some(Hidden::Relu), None).is_err());
    let mlp =
        Network::from_toml("hidden = [3]\ndropout = 0.1", "mine", Some(Hidden::Tanh), None).unwrap().unwrap();
    assert_eq!(mlp, Network::mlp(&[3], Hidden::Tanh, 0.1));
}

#[test]
fn every_setting_reaches_its_layer() {
    let text = r#"
layers = [
    { type = "conv_transpose2d", out_channels = 4, kernel_size = 3, stride = 2, padding = 1, output_padding = 1, groups = 2, bias = false },
    { type = "max_pool2d", kernel_size = 3, stride = 2, dilation = 2, ceil_mode = true },
    { type = "avg_pool2d", kernel_size = 2, stride = 1, padding = 1, ceil_mode = true, count_include_pad = false },
    { type = "batch_norm2d", eps = 0.01, momentum = 0.5, affine = false },
    { type = "flatten" },
    { type = "rms_norm", eps = 1e-3 },
]
"#;
    let network = Network::from_toml(text, "mine", None, None).unwrap().unwrap();
    // 5 x 6 to 10 x 12; windows that reach over 5 and the edge: 4 x 5; then one more each.
    assert_eq!(network.output_shape(&[2, 5, 6]).unwrap(), [4 * 5 * 6]);
    let (shape, params) = built(&network, &[2, 5, 6], 3);
    assert_eq!(shape, [2, 3]);
    assert_eq!(names(&params), ["0.weight", "5.weight", "6.weight", "6.bias"]);
    let recurrent = "layers = [{ type = 'gru', hidden_size = 3, num_layers = 2, bias = false, bidirectional = true, dropout = 0.1 }]";
    let network = Network::from_toml(recurrent, "mine", None, None).unwrap().unwrap();
    assert_eq!(built(&network, &[5, 4], 2).1.len(), 2 * 2 * 2 + 2);
    // As many windows as the picture has columns are counted, not visited.
    let wide = "layers = [{ type = 'max_pool2d', kernel_size = [1, 2], dilation = [1, 2], stride = 1 }]";
    let network = Network::from_toml(wide, "mine", None, None).unwrap().unwrap();
    assert_eq!(network.output_shape(&[1, 1, 2_000_000_000]).unwrap(), [1, 1, 1_999_999_998]);
    // A window that is larger than the picture, which reaches over the edge.
    let over = "layers = [{ type = 'max_pool2d', kernel_size = 3, stride = 2, ceil_mode = true }, { type = 'flatten' }]";
    let network = Network::from_toml(over, "mine", None, None).unwrap().unwrap();
    assert_eq!(network.output_shape(&[1, 2, 2]).unwrap(), [1]);
    assert_eq!(built(&network, &[1, 2, 2], 2).0, [2, 2]);
}

#[test]
fn faults_name_the_layer() {
    for (text, part) in [
        ("layers = [{ type = 'conv9' }]", "layer 0 (conv9): unknown variant"),
        ("layers = [{ out_features = 3 }]", "layer 0 (no type): missing field `type`"),
        (
            "layers = [{ type = 'relu' }, { type = 'linear' }]",
            "layer 1 (linear): missing field `out_features`",
        ),
        ("layers = [{ type = 'linear', out_features = 3, colour = 1 }]", "unknown field `colour`"),
        ("layers = [{ type = 'relu', slope = 1 }]", "unknown field `slope`"),
        (
            "layers = [{ type = 'conv2d', out_channels = 3, kernel_size = [1, 2, 3] }]",
            "expected a size, or a list of 2 sizes",
        ),
        ("layers = [{ type = 'conv2d', out_channels = 3, kernel_size = -1 }]", "expected a size"),
        ("layers = [{ type = 'linear', out_features = 3, name = 'a.b' }]", "name \"a.b\": expected letters"),
        ("layers = []\ncolour = 1", "unknown field `colour`"),
        ("input = 'round'\nlayers = []", "unknown variant `round`"),
        ("widths = [3]", "unknown field `widths`"),
    ] {
        let error = Network::from_toml(text, "mine", None, None).unwrap().unwrap_err();
        assert!(error.message().contains(part), "{text}: {error}");
    }
    let refused = |text: &str, example: &[usize], part: &str| {
        let network = Network::from_toml(text, "mine", None, None).unwrap().unwrap();
        let checked = network.check().and_then(|()| network.output_shape(example));
        let error = checked.unwrap_err();
        assert!(error.kind() == ErrorKind::Argument && error.message().contains(part), "{text}: {error}");
    };
    refused("layers = [{ type = 'linear', out_features = 0 }]", &[3], "width 0");
    refused("layers = [{ type = 'dropout', p = 1.0 }]", &[3], "not in [0, 1)");
    refused(
        "layers = [{ type = 'conv2d', out_channels = 3, kernel_size = 5 }]",
        &[1, 4, 4],
        "does not fit into 4",
    );
    refused(
        "layers = [{ type = 'conv2d', out_channels = 3, kernel_size = 1, stride = 0 }]",
        &[1, 4, 4],
        "stride 0",
    );
    refused(
        "layers = [{ type = 'conv2d', out_channels = 3, kernel_size = 1, groups = 2 }]",
        &[2, 4, 4],
        "2 groups",
    );
    refused("layers = [{ type = 'max_pool2d', kernel_size = 2, padding = 2 }]", &[2, 4, 4], "more than half");
    let missing = "layers = [{ type = 'max_pool2d', kernel_size = 2, padding = 1, dilation = 9 }]";
    refused(missing, &[1, 8, 8], "no element of an image of 8");
    for (norm, example) in [("layer_norm", &[4][..]), ("rms_norm", &[4]), ("batch_norm2d", &[2, 4, 4])] {
        for eps in ["-0.01", "nan"] {
            refused(
                &format!("layers = [{{ type = '{norm}', eps = {eps} }}]"),
                example,
                "expected a number from 0",
            );
        }
    }
    refused("layers = [{ type = 'group_norm', num_groups = 2, eps = -1.0 }]", &[4], "eps -1");
    refused("layers = [{ type = 'batch_norm1d', momentum = 7.0 }]", &[4], "momentum 7");
    refused(
        "layers = [{ type = 'conv2d', out_channels = 3, kernel_size = 1 }]",
        &[16],
        "[channels, height, width]",
    );
    refused("layers = [{ type = 'lstm', hidden_size = 3 }]", &[1, 4, 4], "[steps, features]");
    refused("layers = [{ type = 'group_norm', num_groups = 3 }]", &[4, 2], "3 groups");
    refused(
        "layers = [{ type = 'residual', layers = [{ type = 'linear', out_features = 3 }] }]",
        &[4],
        "the shortcut [4]",
    );
    let twice = "layers = [{ type = 'linear', out_features = 3, name = 'a' }, { type = 'linear', out_features = 3, name = 'a' }]";
    refused(twice, &[3], "called \"a\" too");
    let head = "head = 'a'\nlayers = [{ type = 'linear', out_features = 3, name = 'a' }]";
    refused(head, &[3], "the head: a layer before it is called \"a\" too");
    refused("head = 'a.b/..'\nlayers = []", &[3], "letters, digits and _");
    let block = "layers = [{ type = 'residual', layers = [{ type = 'linear', out_features = 3, name = 'shortcut' }], \
                 shortcut = [{ type = 'linear', out_features = 3 }] }]";
    refused(block, &[3], "\"shortcut.0\" too");
    refused("layers = [{ type = 'lstm', hidden_size = 3, dropout = 0.5 }]", &[4, 4], "there is one");
    let lost = "layers = [{ type = 'conv_transpose2d', out_channels = 3, kernel_size = 1, padding = 2 }]";
    refused(lost, &[1, 4, 4], "leave nothing");
    let more =
        "layers = [{ type = 'conv_transpose2d', out_channels = 3, kernel_size = 1, output_padding = 1 }]";
    refused(more, &[1, 4, 4], "output_padding 1");
    let long = format!("layers = [{{ type = 'linear', out_features = {} }}]", i64::MAX);
    let network = Network::from_toml(&long, "mine", None, None).unwrap().unwrap();
    let arena = Arena::new(DType::F32, Device::cpu()).unwrap();
    let error = build(&network, &Scope::new(&arena, 1), &[3], 1).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
}
